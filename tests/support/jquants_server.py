"""A local HTTP server that speaks the documented J-Quants V2 API, and misbehaves when told to."""

import json
import threading
import time
from collections.abc import Callable
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

KEY = "jq-5ecret.Key_for-tests"
CLOSED = {date(2024, 1, day) for day in (1, 2, 3, 8)} | {date(2024, 2, day) for day in (12, 23)}
HALF_DAY = date(2024, 1, 4)
EMPTY_DAY = date(2024, 1, 17)  # open in the calendar, but the vendor has nothing
SPLIT_DAY = date(2024, 1, 24)
LAST_OF_DELISTED = date(2024, 1, 30)
FIRST_OF_NEW = date(2024, 2, 5)

Row = dict[str, Any]
Fault = Callable[[BaseHTTPRequestHandler], bool]
"""Answers a request wrongly; False lets the right answer follow."""


def calendar() -> dict[date, str]:
    """2024-01-01 to 2024-03-31: 0 closed, 1 open, 2 half day, 3 open for derivatives only."""
    days = [date(2024, 1, 1) + timedelta(days=i) for i in range(91)]
    return {
        day: "0" if day.weekday() > 4 else "3" if day in CLOSED else "2" if day == HALF_DAY else "1"
        for day in days
    }


class Vendor:
    """The server's data, faults and memory of what was asked for; used as a context manager."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets every request, fault and correction."""
        self.calendar = calendar()
        self.published_until = date(2024, 2, 20)
        self.window: tuple[date, date] | None = None  # what the plan covers
        self.not_in_plan: set[str] = set()
        self.late: set[tuple[date, str]] = set()  # bars that are not out yet
        self.corrections: dict[tuple[date, str], Row] = {}
        self.page_size = 1000
        self.faults: list[Fault] = []
        self.asked: list[str] = []  # path and parameters, without paging
        self.requests = 0
        self.on_request: Callable[[int], None] = lambda count: None

    def __enter__(self) -> "Vendor":
        handler = type("Handler", (_Handler,), {"vendor": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v2"

    def open_days(self, until: date = date.max) -> list[date]:
        return [d for d, kind in self.calendar.items() if kind in "12" and d <= until]

    def bars(self, day: date) -> list[Row]:
        if day not in self.open_days(self.published_until) or day == EMPTY_DAY:
            return []
        rows = [self._bar(day, code) for code in self.codes(day) if (day, code) not in self.late]
        return [row | self.corrections.get((day, row["Code"]), {}) for row in rows]

    def codes(self, day: date) -> list[str]:
        codes = ["72030", "13010", "99840"]  # not in order, as nothing promises one
        codes += ["11110"] if day <= LAST_OF_DELISTED else []
        return codes + (["22220"] if day >= FIRST_OF_NEW else [])

    def _bar(self, day: date, code: str) -> Row:
        close = 1000.0 + int(code) % 97 + day.toordinal() % 13
        factor = 0.5 if (code, day) in (("72030", SPLIT_DAY), ("99840", SPLIT_DAY)) else 1.0
        traded = not (code == "99840" and day in (SPLIT_DAY, date(2024, 1, 10)))
        values = {
            "O": close - 1,
            "H": close + 2,
            "L": close - 3,
            "C": close,
            "Vo": 100.0,
            "Va": 1e5,
        }
        raw = values if traded else dict.fromkeys(values)
        adjusted = {f"Adj{name}": 7e9 for name in "OHLC"} | {"AdjVo": 7e9}
        flags = {"UL": "1" if code == "13010" else "0", "LL": "0"}
        extra = {"MktCap": 1e9, "ExRT": ""}
        key = {"Date": str(day), "Code": code}
        return key | raw | flags | {"AdjFactor": factor} | adjusted | extra

    def master(self, day: date) -> list[Row]:
        return [
            {
                "Date": str(day), "Code": code, "CoName": f"会社{code}", "CoNameEn": f"Co {code}",
                "S17": "6", "S17Nm": "自動車・輸送機", "S33": "3700", "S33Nm": "輸送用機器",
                "ScaleCat": "-", "Mkt": "0111", "MktNm": "プライム", "Mrgn": "1", "MrgnNm": "信用",
                "ProdCat": "011",
            }
            for code in self.codes(day)
            if day in self.open_days()
        ]  # fmt: skip

    def summaries(self, day: date) -> list[Row]:
        """Every value a string, blanks empty, as the vendor writes them."""
        from jquantsapi.constants import FIN_SUMMARY_COLUMNS_V2

        def row(code: str, number: str, **known: str) -> Row:
            blank = dict.fromkeys(FIN_SUMMARY_COLUMNS_V2, "")
            common = {"DiscDate": str(day), "DiscTime": "15:00:00", "Code": code, "DiscNo": number}
            return blank | common | known

        if day == date(2024, 2, 6):
            return [
                row(
                    "72030", "20240206000002", DocType="3QFinancialStatements_Consolidated_IFRS",
                    CurPerType="3Q", CurPerEn="2023-12-31", CurFYEn="2024-03-31",
                    Sales="34022715000000", OP="4240217000000", NP="3947277000000",
                    TA="87000000000000", Eq="33000000000000", FSales="43500000000000",
                    FOP="4900000000000", FNP="4500000000000", ShOutFY="1000", TrShFY="100",
                ),
                row(
                    "13010", "20240206000001", DiscTime="", DocType="EarnForecastRevision",
                    CurPerType="FY", CurFYEn="2024-03-31", FOP="5000",
                ),
            ]  # fmt: skip
        if day == date(2024, 2, 14):
            return [
                row(
                    "99840", "20240214000001", DiscTime="11:30:00", CurPerType="FY",
                    DocType="FYFinancialStatements_Consolidated_JP", CurFYEn="2023-12-31",
                    NxtFYEn="2024-12-31", Sales="100", OP="-10", NP="-20", TA="500", Eq="-5",
                    NxFSales="110", NxFOP="20", NxFNp="10", ShOutFY="1000",
                )
            ]  # fmt: skip
        return []

    def flows(self, first: date, last: date) -> list[Row]:
        """Each Thursday, the week that ended six days before, in thousand yen."""
        from jquantsapi.constants import EQ_INVESTOR_TYPES_COLUMNS_V2

        rows = []
        for day in self.calendar:
            if day.weekday() != 3 or not first <= day <= min(last, self.published_until):
                continue
            dates = {
                "PubDate": str(day),
                "StDate": str(day - timedelta(days=10)),
                "EnDate": str(day - timedelta(days=6)),
            }
            for number, section in enumerate(("TSEPrime", "TokyoNagoya"), start=1):
                values = dict.fromkeys(EQ_INVESTOR_TYPES_COLUMNS_V2[4:], 0.0)
                known = {"FrgnBuy": 30.0 * number, "FrgnSell": 20.0, "IndBuy": 5.0, "IndSell": 6.0}
                totals = {"TotBuy": 100.0, "TotSell": 100.0}
                rows.append(dates | {"Section": section} | values | known | totals)
        return rows

    def topix(self, first: date, last: date) -> list[Row]:
        return [
            {"Date": str(day), "O": 1.0, "H": 3.0, "L": 1.0, "C": 2000.0 + day.day}
            for day in self.open_days(self.published_until)
            if first <= day <= last
        ]

    def rows(self, path: str, params: dict[str, str]) -> list[Row] | None:
        """The answer to a request; None where a parameter is missing."""
        first = date.fromisoformat(params.get("from", "0001-01-01"))
        last = date.fromisoformat(params.get("to", "9999-12-31"))
        if path == "/markets/calendar":
            return [
                {"Date": str(d), "HolDiv": kind}
                for d, kind in self.calendar.items()
                if first <= d <= last
            ]
        if path == "/indices/bars/daily/topix":
            return self.topix(first, last)
        if path == "/equities/investor-types":
            return self.flows(first, last)
        if "date" not in params:
            return None
        day = date.fromisoformat(params["date"])
        daily = {
            "/equities/bars/daily": self.bars,
            "/equities/master": self.master,
            "/fins/summary": self.summaries,
        }
        return daily[path](day)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms
    vendor: Vendor

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""

    def do_GET(self) -> None:
        vendor, address = self.vendor, urlsplit(self.path)
        path, params = address.path.removeprefix("/v2"), dict(parse_qsl(address.query))
        key = params.pop("pagination_key", "0")
        start = int(key) if key.isdigit() else 0
        asked = path + "".join(f" {name}={value}" for name, value in params.items())
        vendor.requests += 1
        if key == "0":
            vendor.asked.append(asked)
        vendor.on_request(vendor.requests)
        if vendor.faults and vendor.faults.pop(0)(self):
            return
        if self.headers.get("x-api-key") != KEY:
            reply(self, 403, {"message": "The incoming api key is invalid or expired."})
        elif path in vendor.not_in_plan:
            reply(self, 403, {"message": "This API is not available on your subscription."})
        elif vendor.window and not self._covered(params):
            first, last = vendor.window
            reply(self, 400, {"message": "Your subscription covers the following dates: "
                f"{first} ~ {last}. If you want more data, please check other plans"})  # fmt: skip
        elif (rows := vendor.rows(path, params)) is None:
            reply(self, 400, {"message": "This API requires at least 1 parameter as follows; "
                "date, code"})  # fmt: skip
        else:
            page: dict[str, Any] = {"data": rows[start : start + vendor.page_size]}
            if start + vendor.page_size < len(rows):
                page["pagination_key"] = str(start + vendor.page_size)
            reply(self, 200, page)

    def _covered(self, params: dict[str, str]) -> bool:
        assert self.vendor.window
        first, last = self.vendor.window
        days = [date.fromisoformat(params[n]) for n in ("date", "from", "to") if n in params]
        return all(first <= day <= last for day in days)


def reply(
    handler: BaseHTTPRequestHandler,
    status: int,
    body: object,
    headers: dict[str, str] | None = None,
) -> None:
    """A whole answer in JSON."""
    content = json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(content)))
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)


def fails_with(
    status: int, message: str = "failed", headers: dict[str, str] | None = None
) -> Fault:
    """An error of the API."""

    def fault(handler: BaseHTTPRequestHandler) -> bool:
        reply(handler, status, {"message": message}, headers)
        return True

    return fault


def answers(body: object, status: int = 200) -> Fault:
    """Any other body."""

    def fault(handler: BaseHTTPRequestHandler) -> bool:
        reply(handler, status, body)
        return True

    return fault


def breaks_off(*, announced: bool) -> Fault:
    """Half of a page; with its length announced, or closed in mid-sentence."""

    def fault(handler: BaseHTTPRequestHandler) -> bool:
        handler.send_response(200)
        if announced:
            handler.send_header("Content-Length", "4000")
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(b'{"data": [{"Date": "2024-01-04", "Co')
        handler.close_connection = True
        return True

    return fault


def is_slow(seconds: float) -> Fault:
    """Silence, then the right answer, which nobody waits for any more."""

    def fault(handler: BaseHTTPRequestHandler) -> bool:
        time.sleep(seconds)
        handler.close_connection = True
        return True

    return fault


def hangs_up(handler: BaseHTTPRequestHandler) -> bool:
    """No answer at all."""
    handler.close_connection = True
    return True


def well(handler: BaseHTTPRequestHandler) -> bool:
    """No fault: the right answer."""
    return False
