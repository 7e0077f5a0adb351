"""The demo: a small study of one seed, and two pictures of it."""
