"""The kit of every page: words, pictures, figures and citations."""
