"""What is printed on every document, in its language."""

from typing import Final

from objstore.errors import BadArgument

_COLUMNS: Final = {"fr": 0, "en": 1, "ar": 2}
_TABLE: Final = {
    "invoice": ("Facture", "Invoice", "فاتورة"),
    "credit_note": ("Facture d'avoir", "Credit note", "إشعار دائن"),
    "draft": ("BROUILLON", "DRAFT", "مسودة"),
    "number": ("Numéro", "Number", "الرقم"),
    "no_number": ("aucun (brouillon)", "none (draft)", "بدون رقم (مسودة)"),
    "issued": ("Date d'émission", "Issued on", "تاريخ الإصدار"),
    "due": ("Échéance", "Due on", "تاريخ الاستحقاق"),
    "period": ("Période", "Period", "الفترة"),
    "from_to": ("du {} au {} (UTC)", "{} to {} (UTC)", "من {} إلى {} (UTC)"),
    "seller": ("Vendeur", "Seller", "البائع"),
    "customer": ("Client", "Customer", "الزبون"),
    "account": ("Compte", "Account", "الحساب"),
    "purchase_order": ("Bon de commande", "Purchase order", "سند الطلب"),
    "corrects": ("Avoir sur la facture", "Credits invoice", "تصحيح الفاتورة رقم"),
    "reason": ("Motif", "Reason", "السبب"),
    "billing_error": ("erreur de facturation", "billing error", "خطأ في الفوترة"),
    "sla": ("niveau de service non atteint", "service level not met", "عدم بلوغ مستوى الخدمة"),
    "goodwill": ("geste commercial", "goodwill", "بادرة تجارية"),
    "termination": ("résiliation", "termination", "فسخ العقد"),
    "capital": ("Capital", "Share capital", "رأس المال"),
    "amounts": ("Montants en {}", "Amounts in {}", "المبالغ بعملة {}"),
    "description": ("Désignation", "Description", "البيان"),
    "quantity": ("Quantité", "Quantity", "الكمية"),
    "unit": ("Unité", "Unit", "الوحدة"),
    "unit_price": ("Prix unitaire HT", "Unit price", "سعر الوحدة"),
    "tier": ("Tranche", "Tier", "الشريحة"),
    "net": ("Montant HT", "Net amount", "المبلغ دون الرسوم"),
    "project": ("Projet", "Project", "المشروع"),
    "no_project": ("Hors projet", "Without a project", "خارج المشاريع"),
    "subtotal": ("Sous-total HT", "Subtotal before tax", "المجموع الفرعي دون الرسوم"),
    "tax": ("Taxe", "Tax", "الرسم"),
    "rate": ("Taux", "Rate", "النسبة"),
    "base": ("Base HT", "Taxable amount", "الوعاء دون الرسوم"),
    "tax_amount": ("Montant de la taxe", "Tax amount", "مبلغ الرسم"),
    "legal_basis": ("Base légale", "Legal basis", "الأساس القانوني"),
    "total_net": ("Total HT", "Total before tax", "المجموع دون الرسوم"),
    "total_tax": ("Total des taxes", "Total tax", "مجموع الرسوم"),
    "total": ("Total TTC", "Total including tax", "المجموع بكل الرسوم"),
    "prepaid": ("Prélevé sur l'avance", "Taken from the prepaid balance", "مقتطع من الرصيد المسبق"),
    "to_pay": ("Net à payer", "Amount due", "الصافي الواجب دفعه"),
    "invoice_words": (
        "Arrêtée la présente facture à la somme de :",
        "This invoice comes to, in words:",
        "أوقفت هذه الفاتورة على مبلغ:",
    ),
    "credit_note_words": (
        "Arrêté le présent avoir à la somme de :",
        "This credit note comes to, in words:",
        "أوقف هذا الإشعار على مبلغ:",
    ),
    "payment": ("Règlement", "Payment", "الدفع"),
    "terms": ("Délai de paiement", "Payment term", "أجل الدفع"),
    "days": ("{} jours", "{} days", "{} (بالأيام)"),
    "bank": ("Coordonnées bancaires", "Bank account", "الحساب البنكي"),
    "fx": ("Taux de change", "Exchange rate", "سعر الصرف"),
    "rounded": (
        "Quantités imprimées à six décimales au plus ; montants calculés sur les quantités exactes.",
        "Quantities are printed with at most six decimals; amounts are computed from exact quantities.",
        "تطبع الكميات بستة أرقام عشرية على الأكثر، وتحسب المبالغ من الكميات المضبوطة.",
    ),
    "page": ("Page", "Page", "الصفحة"),
}  # fmt: skip


def text(what: str, language: str) -> str:
    """Raises: BadArgument for a language in which no documents are written."""
    column = _COLUMNS.get(language)
    if column is None:
        raise BadArgument(
            f"documents are written in {', '.join(_COLUMNS)}, not {language!r}",
            name="language",
            value=language,
        )
    return _TABLE[what][column]
