"""The floor that training, search and serving stand on. Imports none of them."""
