"""Pages for a browser: one style for reports and for the explorer, nothing from outside, no script."""
