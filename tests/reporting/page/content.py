"""What a page holds, read back from its text without a browser."""

import base64
import gzip
import html
import json
import re


def packed(page, name):
    (text,) = re.findall(rf'<script type="text/plain" id="{name}">([^<]*)</script>', page)
    return gzip.decompress(base64.b64decode(text)).decode()


def data_of(page):
    """The page's JSON, with each table as a list of dicts."""
    content = json.loads(packed(page, "data"))
    for name, table in content["tables"].items():
        columns = {
            column["name"]: column["values"]
            if "values" in column
            else [column["texts"][code] for code in column["codes"]]
            for column in table["columns"]
        }
        content["tables"][name] = [
            {column: values[row] for column, values in columns.items()} for row in range(table["rows"])
        ]
    return content


def visible(page):
    """The static text that a reader sees."""
    body = page[page.index("<main") : page.index("</main>")]
    return html.unescape(re.sub(r"<[^>]*>", "", body))
