"""How the models of the demo were trained: scripts that anyone can run again.

They need the `dev` extra, for the picture of the losses.
"""
