# What the tests use; the package has no types of its own.
from playwright.sync_api import Page

class AxeResults:
    violations_count: int
    def generate_report(self) -> str: ...

class Axe:
    def run(self, page: Page) -> AxeResults: ...
