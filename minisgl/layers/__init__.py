"""The pieces of a transformer, each of which knows its rank's part. Constructing one loads it.

Plain classes, not ``nn.Module``: nothing here is trained, moved or listed, and a plain call is
0.5 us where a module's is several, a thousand times a step.
"""
