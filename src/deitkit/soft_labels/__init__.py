"""Soft labels: a teacher's outputs for every view of many epochs, stored for any number of students.

`store` is the folder, `codec` its bytes, `manifest` says what the soft labels belong to, `replay` checks that
a student sees the same views.
"""
