"""How the models of the demo were trained: scripts that anyone can run again."""
