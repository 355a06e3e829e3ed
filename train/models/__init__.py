"""Networks, and the classifier that puts the normalisation in front of one."""
