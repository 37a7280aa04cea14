"""How alike the samples are to a layer, and the layers to each other."""

from brittle.similarity.clusters import (
    Clusters,
    LayerSummary,
    cluster,
    effective_rank,
    layer_summary,
    redundancy,
)
from brittle.similarity.features import LayerFeatures
from brittle.similarity.layers import LayerSimilarity, layer_cosine, layer_similarity, linear_cka
from brittle.similarity.neighbours import nearest
from brittle.similarity.pictures import plot_layers, plot_matrix

__all__ = [
    "Clusters",
    "LayerFeatures",
    "LayerSimilarity",
    "LayerSummary",
    "cluster",
    "effective_rank",
    "layer_cosine",
    "layer_similarity",
    "layer_summary",
    "linear_cka",
    "nearest",
    "plot_layers",
    "plot_matrix",
    "redundancy",
]
