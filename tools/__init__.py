"""What works in a clone only: reproduce, the book, shipping."""
