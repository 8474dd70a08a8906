"""What perturbations did on average: measured, shrunk by noise, carried over to other contexts and combinations."""
