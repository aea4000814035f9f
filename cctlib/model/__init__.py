"""Sections 2 and 3 of the method: networks, their sites, and the folders that hold them."""
