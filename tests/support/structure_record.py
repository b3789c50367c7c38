"""A record of a learned structure that passes every check, made by hand."""

from dataclasses import asdict

from atft_model.structure.config import StructureConfig
from atft_model.structure.record import Edge, StructureRecord

NAMES = ("metals", "banks", "retail", "energy")

EDGES = (
    Edge("metals", "banks", 0, 0.5, 0.9, 0.9, True),
    Edge("metals", "banks", 1, -0.6, 1.0, 1.0, True),  # stronger: it stands for both
    Edge("banks", "retail", 0, -0.3, 0.8, 0.8, True),
    Edge("retail", "retail", 1, 0.9, 1.0, 1.0, True),  # its own past
    Edge("energy", "metals", 1, 0.4, 0.6, 0.6, False),
)


def sound_record(**values) -> StructureRecord:
    """Four sectors, three links; any field may be given."""
    epoch = {"epoch": 0, "loss_recon": 1.0, "loss_sparse": 0.1, "loss_acyclic": 0.0,
             "loss_disen": 0.0, "gradient_norm": 0.5, "clip_ratio": 0.0}  # fmt: skip
    made = {
        "names": NAMES, "exogenous_names": ("market",), "rows": 400, "missing_share": 0.0,
        "config": asdict(StructureConfig()), "edges": EDGES, "order": NAMES, "noise": {},
        "exogenous_effects": {}, "health": (epoch, epoch | {"epoch": 1}),
        "routes": {"gradient_instant": 1.0, "gradient_lagged": 1.0, "permuted_change": 0.5,
                   "leak": 0.0},
        "threshold": {"value": 0.5, "plateau": 5, "at_grid_end": False, "grid": [], "scores": []},
        "gradient_threshold": {},
        "chance": {"edges": 4, "shuffled": (0, 0), "p_value": 1e-5},
        "rescaling": {"identical": True, "differing_edges": 0},
        "hidden_factor": {"likely": False, "bic_gain": -10.0, "driven_share": 0.1,
                          "edges_without": 4, "edges_with": 4},
        "common_factor": None, "distinct_optima": 1,
    }  # fmt: skip
    return StructureRecord(**(made | values))
