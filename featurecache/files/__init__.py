"""Files of this project: written whole or not at all, locked by one writer, hashed, read row by row."""
