"""A local page on which a fitted model is asked. Nothing of it leaves the machine."""
