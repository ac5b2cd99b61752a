"""From samples to scores: a reward is a plain callable `reward(batch: Batch) -> Scores`."""

from .aesthetic import aesthetic_score, aesthetic_terms, aesthetic_truth
from .batch import Batch, Reward, Scores, parsed, scored, texts, where_defined
from .best_of import (
    best_of,
    best_of_kl,
    best_of_weights,
    diversity_of_picks,
    in_units,
    pick_shares,
    press,
)
from .combine import (
    combined,
    effective_weights,
    minimum,
    product,
    standardize,
    standardized_sum,
    weighted_sum,
)
from .composition import (
    all_right_score,
    binding_score,
    composition_score,
    count_score,
    from_reader,
    has_digit,
    relation_score,
    typographic_count_score,
)
from .diagnostic import EDITS, Pairs, blind_spots, make_pairs, pair_diagnostic
from .diversity import diversity, mean_pairwise_distance
from .pixels import (
    STATISTICS,
    brightness,
    color_entropy,
    colorfulness,
    compressibility,
    contrast,
    edge_density,
    incompressibility,
    jpeg_kb,
    luminance,
    of_images,
    picture_statistics,
    saturation,
    sharpness,
    warmth,
)
from .preferences import bradley_terry_loss, fit_bradley_terry
from .proxy import (
    AestheticProxy,
    aesthetic_proxy_reward,
    curated_looks,
    load_aesthetic_proxy,
    local_texture,
    measure_flaw,
    rate,
    save_aesthetic_proxy,
    train_aesthetic_proxy,
)
from .similarity import (
    DualEncoder,
    embed_images,
    embed_texts,
    load_dual_encoder,
    similarity_reward,
)
from .words import ocr_reward, rapid_ocr, word_score, word_similarity
