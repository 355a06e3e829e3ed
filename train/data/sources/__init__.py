"""Where images come from: one module for each kind of source, and the choice among them."""
