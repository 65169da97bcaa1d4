"""Reading, writing, locking and hashing of files. A file is published complete or not at all."""
