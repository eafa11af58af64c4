"""Pure numbers about adapters and outputs: spectra, norms, similarity, intruder dimensions, verdicts.

Nothing here changes a model, logs, draws, or knows Lightning; a function serves monitors and offline commands alike.
"""
