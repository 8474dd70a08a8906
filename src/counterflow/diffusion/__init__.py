"""Denoising diffusion (DDPM, DDIM) in the form in which image transformers were published: the objective beside which the flow stands.

Read `schedule.py`, then `reverse.py`; `ddpm.py` and `ddim.py` are one loop each.
"""
