"""Visitors of Datasette, for Locust (matrix_parts/datasette.py): each asks for one of PAGES after the other."""

import itertools
import os

from locust import FastHttpUser, constant, task


class Visitor(FastHttpUser):
    wait_time = constant(0)

    def on_start(self):
        self.pages = itertools.cycle(os.environ["PAGES"].split())

    @task
    def visit(self):
        self.client.get(next(self.pages))
