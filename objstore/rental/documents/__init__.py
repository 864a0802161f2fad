"""Invoices and credit notes as people read them."""
