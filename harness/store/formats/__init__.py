"""Readers of other tools' files: which number becomes which figure, and where the definitions differ."""
