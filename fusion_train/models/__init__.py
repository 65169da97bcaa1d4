"""Networks. They know tensors only: no path, no config file, no store.

Shapes: B clips, M modalities, K tokens per modality (64), D_m width of modality m, N soft tokens, H width of the LLM.
"""
