"""What stands on a line of an invoice, in the customer's language."""

from typing import Final

_TABLE: Final = {
    "storage": ("Stockage", "Storage", "تخزين"),
    "early_delete": (
        "Suppression avant la durée minimale", "Deleted before the least age", "حذف قبل المدة الدنيا",
    ),
    "early_accrued": (
        "Suppression avant la durée minimale", "Deleted before the least age", "حذف قبل المدة الدنيا",
    ),
    "requests_a": (
        "Requêtes PUT, COPY, POST, LIST", "PUT, COPY, POST, LIST requests", "طلبات PUT وCOPY وPOST وLIST",
    ),
    "requests_b": ("Requêtes GET et autres", "GET and other requests", "طلبات GET وغيرها"),
    "egress_internet": (
        "Trafic sortant vers Internet", "Transfer to the internet", "نقل البيانات إلى الإنترنت",
    ),
    "egress_internal": (
        "Trafic interne", "Transfer to internal networks", "نقل البيانات إلى الشبكات الداخلية",
    ),
    "egress_replication": (
        "Trafic de réplication", "Transfer to replicas", "نقل بيانات النسخ المتماثل",
    ),
    "subscription": ("Abonnement", "Subscription", "اشتراك"),
    "commitment": ("Capacité réservée", "Committed capacity", "سعة محجوزة"),
    "commitment_returned": (
        "Capacité réservée, remboursée", "Committed capacity, given back", "سعة محجوزة، مستردة",
    ),
    "overage": (
        "Dépassement de la capacité réservée", "Above committed capacity", "تجاوز السعة المحجوزة",
    ),
    "sla_credit": ("Avoir de niveau de service", "Service level credit", "رصيد مستوى الخدمة"),
    "correction": ("Rectification", "Correction", "تصحيح"),
    "included": ("inclus", "included", "مشمول"),
    "tier": ("tranche", "tier", "شريحة"),
}  # fmt: skip
_COLUMNS: Final = {"fr": 0, "en": 1, "ar": 2}


def caption(what: str, language: str) -> str:
    """what: a meter, or another word of the table above. An unknown language is answered in English."""
    return _TABLE[what][_COLUMNS.get(language, 1)]


def line_caption(
    what: str, language: str, *, storage_class: str = "", tier: int = 0, included: bool = False
) -> str:
    """'Stockage STANDARD, tranche 2'."""
    text = " ".join(filter(None, (caption(what, language), storage_class)))
    comma = "، " if language == "ar" else ", "
    if tier:
        text += f"{comma}{caption('tier', language)} {tier}"
    return text + comma + caption("included", language) if included else text
