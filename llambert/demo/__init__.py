"""The demo: a corpus and two small models of this project's own, and an ordinary run of them."""
