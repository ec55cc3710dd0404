"""Relaxations x = g(z), one file each: what every attack that searches may vary."""
