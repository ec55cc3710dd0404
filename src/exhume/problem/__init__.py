"""The vocabulary of the inverse problem O = D(F(S)), as small frozen types."""
