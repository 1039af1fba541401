"""A naive second opinion on docs/money.md, written from that page alone.

`model.py --document FILE` checks the worked examples of the page. `model.py`
reads histories from standard input, each ended by a line `end`, and writes for
each what became of it: a word a line, every balance that is not 0, the number of
entries, and `end`.
"""
import hashlib, hmac, json, math, sys
from fractions import Fraction

DAY = 86_400_000
PRICES = {"gpu": ("price_micro_per_gpu_hour", "gpu_count", 3_600_000, "duration_ms"),
          "storage": ("price_micro_per_gib_month", "storage_gib", 3_600_000 * 730, "duration_ms"),
          "tokens-in": ("price_micro_per_million_tokens_in", None, 10**6, "tokens_in"),
          "tokens-out": ("price_micro_per_million_tokens_out", None, 10**6, "tokens_out"),
          "tokens-cached": ("price_micro_per_million_tokens_cached", None, 10**6, "tokens_cached")}
SHARES = {"customer_fee_bp": 100, "node_bp": 8500, "validator_bp": 500, "platform_bp": 1000}

class Refused(Exception): pass
def must(condition):
    if not condition: raise Refused
def part(amount, bp):
    return abs(amount) * bp // 10_000 * (1 if amount >= 0 else -1)
def exact(t, line, used):
    price, amount, per, unit = PRICES[line]
    return Fraction(t["prices"].get(price, 0) * (t.get(amount, 0) if amount else 1) * used.get(unit, 0) * t.get("tier_bp", 10_000), per * 10_000)
def price(t, used, rounded=math.floor):
    must(all(used.get(unit, 0) >= 0 for unit in ("duration_ms", "tokens_in", "tokens_out", "tokens_cached")))
    fee = t.get("shares", SHARES)["customer_fee_bp"]
    return (sum(rounded(exact(t, line, used)) for line in PRICES),
            sum(rounded(exact(t, line, used) * fee / 10_000) for line in PRICES))
def plus(a, b):
    return {unit: a.get(unit, 0) + b.get(unit, 0) for unit in set(a) | set(b)}
def divide(charge, shares):
    node, validators = part(charge, shares["node_bp"]), part(charge, shares["validator_bp"])
    return node, validators, charge - node - validators
def settle(charge, shares, faults):
    credit = part(max(charge, 0), faults.get("node_bp", 0))
    return credit, part(max(charge, 0), faults.get("hub_bp", 0)), divide(charge - credit, shares)
def apportion(total, weights):
    some = sorted((w["account"], w["weight"]) for w in weights if w["weight"] > 0)
    whole = sum(w for _, w in some)
    shares = {a: total * w // whole for a, w in some}
    ranking = sorted(some, key=lambda aw: (-(total * aw[1] % whole), aw[0]))
    for a, _ in ranking[:total - sum(shares.values())]: shares[a] += 1
    return sorted(shares.items())

def billed(observations, start, end):
    """Moment by moment between all the times that are named."""
    spans = [o for o in observations if 0 <= o["from_ms"] < o["to_ms"] <= 10**14]
    edges = sorted({start, end} | {o[k] for o in spans for k in ("from_ms", "to_ms")})
    moments = list(zip(edges, edges[1:]))
    def covering(by, m): return [o for o in spans if o["by"] == by and o["from_ms"] <= m[0] and m[1] <= o["to_ms"]]
    states = [max(((o["incarnation"], not o["ready"], o["restarts"] if o["ready"] else 0) for o in covering("hub", m)), default=None) for m in moments]
    stretches = []
    for i, m in enumerate(moments):
        before = next((j for j in range(i, -1, -1) if states[j]), None)
        after = next((j for j in range(i, len(moments)) if states[j]), None)
        bridged = (states[i] is None and before is not None and after is not None and states[before][1:] == states[after][1:]
                   and not states[before][1] and moments[after][0] - moments[before][1] <= 900_000)
        kind = ("seen" if states[i] and not states[i][1] else "served" if covering("gateway", m) else "bridged" if bridged else None)
        if kind and not covering("node-down", m) and start <= m[0] and m[1] <= end:
            if stretches and stretches[-1]["to_ms"] == m[0] and stretches[-1]["evidence"] == kind: stretches[-1]["to_ms"] = m[1]
            else: stretches.append({"from_ms": m[0], "to_ms": m[1], "evidence": kind})
    ignored = {json.dumps(o, sort_keys=True) for o in observations if o not in spans}
    return {"stretches": stretches, "duration_ms": sum(s["to_ms"] - s["from_ms"] for s in stretches), "ignored": len(ignored)}

def judge(tier, s):
    ppm, limit = {"economy": (10_000, 5_000), "standard": (5_000, 2_000), "priority": (1_000, 1_000)}[tier]
    times = sorted(ms for ms, count in s.get("first_byte_ms", []) for _ in range(count))
    node, hub = s.get("node_failures", 0), s.get("hub_failures", 0)
    counted, notice = len(times) + node + hub, 1_000 if s.get("short_notice") else 0
    if counted < 100: return {"counted": counted, "percentile_ms": None, "faults": {"node_bp": notice, "hub_bp": 0}}
    def credit(steps, ratio): return max([bp for times, bp in steps if ratio > times], default=0)
    def failed(n): return credit([(1, 1_000), (5, 2_500), (20, 10_000)], Fraction(n * 10**6, counted * ppm))
    at = times[math.ceil(Fraction(len(times) * 9_500, 10_000)) - 1] if times else None
    slow = credit([(1, 500), (2, 1_000), (5, 2_500)], Fraction(at, limit)) if times else 0
    node_bp = min(10_000, failed(node) + slow + notice)
    return {"counted": counted, "percentile_ms": at, "faults": {"node_bp": node_bp, "hub_bp": min(10_000 - node_bp, failed(hub))}}

def root(leaves):
    if not leaves: return hashlib.sha256()
    if len(leaves) == 1: return hashlib.sha256(b"\0" + leaves[0].encode())
    left = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + root(leaves[:left]).digest() + root(leaves[left:]).digest())
def digest(t):
    d = {**{p[0]: 0 for p in PRICES.values()}, "tier": "standard", "tier_bp": 10_000, "storage_gib": 0, "parallelism": 1, "interruptible": 0,
         "notice_seconds": 0, **SHARES, **t, **t["prices"], **t.get("shares", {})}
    names = ["placement", "customer", "node", "owner", "gpu_model", "tier", "gpu_count", "storage_gib", *[PRICES[l][0] for l in PRICES], "tier_bp",
             "parallelism", "interruptible", "notice_seconds", *SHARES, "since_ms"]
    return hashlib.sha256("".join(f"{line}\n" for line in ["creo.terms.v1", *[f"{n}={d[n]}" for n in names]]).encode()).hexdigest()

class Ledger:
    def __init__(self):
        self.now, self.last, self.entries, self.keys, self.balance = 0, 0, 0, {}, {}
        self.known, self.frozen, self.free, self.placements, self.used, self.expires = set(), set(), {}, {}, {}, {}
        self.epochs, self.sealed, self.disputes, self.withdrawals, self.notices, self.pays, self.rails = {}, {}, {}, {}, {}, [], {}
        self.credited, self.disputed, self.adjusted = {}, {}, set()
    def get(self, account): return self.balance.get(account, 0)
    def move(self, debit, credit, amount):
        must(0 <= amount <= 10**18)
        if amount == 0: return
        for account, by in ((debit, -amount), (credit, amount)):
            kind, value = account.split(":")[0], self.get(account) + by
            must(kind in ("external", "validation", "reserve") or (value <= 0 if kind in ("receivable", "bad-debt") else value >= 0))
            must(abs(value) <= 10**18)
            self.balance[account] = value
        self.entries += 1
    def some(self, debit, credit, amount):
        amount = min(amount, self.get(debit)); self.move(debit, credit, amount)
        return amount
    def recover(self, c): self.some(f"customer:{c}", f"receivable:{c}", -self.get(f"receivable:{c}"))
    def payouts(self, owner, free):
        mine = [(self.free[a], a) for a, b in self.balance.items() if a.startswith(f"payout:{owner}/") and b]
        return [a for at, a in (sorted(m for m in mine if m[0] <= self.now) if free else sorted((m for m in mine if m[0] > self.now), reverse=True))]
    def charges(self, p):
        """What is charged for a Placement, by epoch."""
        result, total = {}, {}
        for e in sorted(self.used.get(p, {})):
            before = price(self.placements[p], total)
            total = plus(total, self.used[p][e])
            after = price(self.placements[p], total)
            result[e] = (after[0] - before[0], after[1] - before[1])
        return result
    def charge(self, e, p): return self.charges(p).get(e, (0, 0))
    def short(self):
        kinds = ("customer", "hold", "charges-pending", "pool", "payout", "bond", "withdrawal-pending")
        owed = sum(b for a, b in self.balance.items() if a.split(":")[0] in kinds) + max(0, self.get("validation"))
        return owed > sum(difference - self.get(f"external:{rail}") for rail, difference in self.rails.items())
    def back(self, customer, owner, node, validators, platform):
        to = f"customer:{customer}"
        for source in [*self.payouts(owner, False), f"bond:{owner}"]: node -= self.some(source, to, node)
        self.move("validation", to, validators)
        platform -= self.some("platform", to, platform)
        self.move("reserve", to, node + platform)
        self.recover(customer)
    def take_free(self, owner, to, amount):
        for source in self.payouts(owner, True)[:256]: amount -= self.some(source, to, amount)
        must(amount == 0)

    def key(self, o):
        forms = {"deposit": "received/{rail}/{reference}", "fund": "received/{rail}/{reference}", "chargeback": "chargeback/{rail}/{reference}",
                 "attest": "attest/{rail}/{reference}", "write-off": "write-off/{customer}/{reference}", "unfreeze": "unfreeze/{customer}/{reference}",
                 "open": "open/{customer}", "hold": "hold/{placement}/{sequence}", "release": "release/{placement}/{sequence}", "usage": "usage/{source}/{sequence}",
                 "seal": "seal/{epoch}", "share": "share/{epoch}", "credit": "credit/{epoch}/{placement}", "pay": "pay/{epoch}/{account}",
                 "adjust": "adjust/{epoch}/{placement}", "settle": "settle/{epoch}", "notice": "notice/{owner}/{id}", "free-bond": "free-bond/{owner}/{id}"}
        if o["op"] == "agree": return "agree/" + o["terms"]["placement"]
        if o["op"] == "open-epoch": return f"open-epoch/{o['window']['epoch']}"
        return forms.get(o["op"], o["op"] + "/{id}").format(**o)
    def post(self, o):
        key = self.key(o)
        if key in self.keys: return "again" if self.keys[key] == o else "refused"
        saved = (dict(self.balance), self.entries)
        try:
            must(self.now >= self.last)
            must(all(0 < len(o[k]) <= 63 for k in ("customer", "owner", "placement", "id") if k in o))
            o2 = {k: int(v) if k.endswith("_micro") else v for k, v in o.items()}
            must(o2.get("amount_micro", 1) > 0)
            commit = getattr(self, "do_" + o["op"].replace("-", "_"))(o2)
        except Refused:
            self.balance, self.entries = saved
            return "refused"
        if commit: commit()
        self.entries += self.entries == saved[1]
        self.keys[key], self.last = o, self.now
        return "ok"

    def do_open(self, o): return lambda: self.known.add(o["customer"])
    def do_deposit(self, o):
        must(o["customer"] in self.known)
        self.move(f"external:{o['rail']}", f"customer:{o['customer']}", o["amount_micro"]); self.recover(o["customer"])
    def do_fund(self, o): self.move(f"external:{o['rail']}", o["to"] if isinstance(o["to"], str) else f"bond:{o['to']['bond']}", o["amount_micro"])
    def do_chargeback(self, o):
        c, to = o["customer"], f"external:{o['rail']}"
        must(c in self.known)
        self.move(f"receivable:{c}", to, o["amount_micro"] - self.some(f"customer:{c}", to, o["amount_micro"]))
        return lambda: self.frozen.add(c)
    def do_write_off(self, o):
        owes = f"receivable:{o['customer']}"
        must(self.get(owes) < 0); self.move("bad-debt", owes, -self.get(owes))
    def do_unfreeze(self, o):
        must(o["customer"] in self.known and self.get(f"receivable:{o['customer']}") == 0)
        return lambda: self.frozen.discard(o["customer"])
    def do_attest(self, o): return lambda: self.rails.update({o["rail"]: o["balance_micro"] + self.get(f"external:{o['rail']}")})
    def do_agree(self, o):
        must(o["terms"]["customer"] in self.known)
        return lambda: self.placements.update({o["terms"]["placement"]: o["terms"]})
    def do_hold(self, o):
        must(o["placement"] in self.placements)
        c = self.placements[o["placement"]]["customer"]
        must(c not in self.frozen and self.now < o["expires_at_ms"] <= self.now + 31 * DAY)
        self.move(f"customer:{c}", f"hold:{o['placement']}", o["amount_micro"])
    def do_release(self, o):
        must(o["placement"] in self.placements)
        c, hold = self.placements[o["placement"]]["customer"], f"hold:{o['placement']}"
        self.move(hold, f"customer:{c}", self.get(hold)); self.recover(c)
    def do_usage(self, o):
        p, e = o["placement"], o["epoch"]
        must(e in self.epochs and e not in self.sealed and p in self.placements)
        c, old, before = self.placements[p]["customer"], self.used.get(p, {}), self.charges(p)
        self.used[p] = {**old, e: plus(old.get(e, {}), o["used"])}
        try: after = self.charges(p)
        except Refused: self.used[p] = old; raise
        rises = {k: max(0, sum(after[k])) - max(0, sum(before.get(k, (0, 0)))) for k in sorted(after)}
        for k, rise in rises.items(): self.move(f"charges-pending:{k}", f"customer:{c}", max(0, -rise))
        for k, rise in rises.items():
            for source in (f"hold:{p}", f"customer:{c}"): rise -= self.some(source, f"charges-pending:{k}", max(0, rise))
            self.move(f"receivable:{c}", f"charges-pending:{k}", max(0, rise))
        self.recover(c)
    def do_open_epoch(self, o):
        w, last = o["window"], max(self.epochs, default=None)
        must(w["start_ms"] < w["end_ms"] and (last is None or (w["epoch"], w["start_ms"]) == (last + 1, self.epochs[last]["end_ms"])))
        return lambda: self.epochs.update({w["epoch"]: {**w, "settled": None}})
    def do_seal(self, o):
        e = o["epoch"]
        must(e in self.epochs and e == max(self.sealed, default=min(self.epochs) - 1) + 1)
        must(self.now >= self.epochs[e]["end_ms"] + self.epochs[e]["grace_ms"] and not self.short())
        self.move(f"charges-pending:{e}", f"pool:{e}", self.get(f"charges-pending:{e}"))
        note = {"inputs": o.get("inputs", {}), "validation": self.get("validation"), "subsidy": self.get("subsidy"), "at": self.now}
        return lambda: self.sealed.update({e: note})
    def settling(self, e): must(e in self.sealed and self.epochs[e]["settled"] is None)
    def do_share(self, o):
        self.settling(o["epoch"])
        self.move(f"pool:{o['epoch']}", "validation", o["validators_micro"]); self.move(f"pool:{o['epoch']}", "platform", o["platform_micro"])
    def do_credit(self, o):
        e, p = o["epoch"], o["placement"]
        self.settling(e); must(p in self.placements)
        c, both = self.placements[p]["customer"], o["node_micro"] + o["hub_micro"]
        must(both <= self.charge(e, p)[0])
        self.move(f"pool:{e}", f"customer:{c}", o["node_micro"])
        self.move("reserve", f"customer:{c}", o["hub_micro"] - self.some("platform", f"customer:{c}", o["hub_micro"]))
        self.recover(c)
        return lambda: self.credited.update({(e, p): both})
    def do_pay(self, o):
        self.settling(o["epoch"])
        payout, gross = f"payout:{o['account']}/{o['epoch']}", o["node_micro"] + o["validator_micro"] + o["standby_micro"]
        self.move(f"pool:{o['epoch']}", payout, o["node_micro"]); self.move("validation", payout, o["validator_micro"])
        self.move("subsidy", payout, o["standby_micro"]); self.move(payout, f"bond:{o['account']}", o["withheld_micro"])
        return lambda: (self.free.update({payout: self.now + DAY}), self.pays.append((o["account"], self.now, gross)))
    def do_adjust(self, o):
        e, p = o["epoch"], o["placement"]
        self.settling(e); must(p in self.placements and sum(self.charge(e, p)) < 0)
        t, (charge, fee) = self.placements[p], self.charge(e, p)
        node, validators, platform = divide(-charge, t.get("shares", SHARES))
        self.back(t["customer"], t["owner"], node, validators, platform - fee)
        return lambda: self.adjusted.add((e, p))
    def do_settle(self, o):
        e = o["epoch"]
        self.settling(e); must(all(sum(self.charge(e, p)) >= 0 or (e, p) in self.adjusted for p in self.placements))
        must(self.get(f"pool:{e}") <= 1_000); self.move(f"pool:{e}", "rounding", self.get(f"pool:{e}"))
        return lambda: self.epochs[e].update(settled=self.now)
    def do_dispute(self, o):
        e, p, amount = o["epoch"], o["placement"], o["amount_micro"]
        must(e in self.epochs and p in self.placements and self.epochs[e]["settled"] is not None and self.now < self.epochs[e]["settled"] + 7 * DAY)
        must(amount <= self.charge(e, p)[0] - self.credited.get((e, p), 0) - self.disputed.get((e, p), 0))
        t = self.placements[p]
        payout = f"payout:{t['owner']}/{e}"
        if self.free.get(payout, 0) > self.now: self.some(payout, f"hold:dispute/{o['id']}", divide(amount, t.get("shares", SHARES))[0])
        return lambda: (self.disputes.update({o["id"]: {**o, "open": True}}), self.disputed.update({(e, p): self.disputed.get((e, p), 0) + amount}))
    def do_resolve(self, o):
        d, upheld = self.disputes.get(o["id"]), o["upheld_micro"]
        must(d and d["open"] and upheld <= d["amount_micro"])
        t, at, aside = self.placements[d["placement"]], (d["epoch"], d["placement"]), f"hold:dispute/{o['id']}"
        node, validators, platform = divide(upheld, t.get("shares", SHARES))
        node -= self.some(aside, f"customer:{t['customer']}", node)
        self.move(aside, f"payout:{t['owner']}/{d['epoch']}", self.get(aside))
        self.back(t["customer"], t["owner"], node, validators, platform)
        return lambda: (d.update(open=False), self.disputed.update({at: self.disputed[at] - d["amount_micro"] + upheld}))
    def do_withdraw(self, o):
        to, source = f"withdrawal-pending:{o['id']}", o["from"]
        if source == "platform": self.move("platform", to, o["amount_micro"]); must(not self.short())
        elif "owner" in source: self.take_free(source["owner"], to, o["amount_micro"])
        else:
            must(source["customer"] in self.known and source["customer"] not in self.frozen)
            self.move(f"customer:{source['customer']}", to, o["amount_micro"])
        return lambda: self.withdrawals.update({o["id"]: {**o, "over": False}})
    def end(self, o):
        w = self.withdrawals.get(o["id"]); must(w and not w["over"])
        return w
    def do_sent(self, o):
        w = self.end(o); self.move(f"withdrawal-pending:{o['id']}", f"external:{w['rail']}", w["amount_micro"])
        return lambda: w.update(over=True)
    def do_failed(self, o):
        w = self.end(o)
        to = "platform" if w["from"] == "platform" else f"customer:{w['from']['customer']}" if "customer" in w["from"] else f"payout:{w['from']['owner']}/returned-{o['id']}"
        self.move(f"withdrawal-pending:{o['id']}", to, w["amount_micro"])
        if to.startswith("customer:"): self.recover(to[9:])
        return lambda: (w.update(over=True), self.free.update({to: self.now}))
    def do_donate(self, o): self.take_free(o["owner"], "reserve", o["amount_micro"])
    def do_notice(self, o): return lambda: self.notices.update({o["owner"]: (o["id"], self.now)})
    def do_free_bond(self, o):
        owner, notice = o["owner"], self.notices.get(o["owner"], ("", 0))
        must(notice[0] == o["id"] and self.now >= notice[1] + 7 * DAY)
        must(not any(d["open"] and self.placements[d["placement"]]["owner"] == owner for d in self.disputes.values()))
        payout = f"payout:{owner}/bond-{o['id']}"
        self.move(f"bond:{owner}", payout, self.get(f"bond:{owner}"))
        return lambda: (self.free.update({payout: self.now}), self.notices.pop(owner))

    def settlement(self, e):
        if e not in self.sealed: return "unknown"
        note, nodes, kept, validators, platform, credits, adjusts = self.sealed[e], {}, {}, 0, 0, [], []
        for p in sorted(self.placements):
            t, (charge, fee) = self.placements[p], self.charge(e, p)
            credit, hub, parts = settle(charge, t.get("shares", SHARES), note["inputs"].get("faults", {}).get(p, {}))
            if credit or hub: credits.append({"op": "credit", "epoch": e, "placement": p, "node_micro": str(credit), "hub_micro": str(hub)})
            if charge + fee < 0: adjusts.append({"op": "adjust", "epoch": e, "placement": p})
            if charge + fee <= 0: continue
            nodes[t["owner"]] = nodes.get(t["owner"], 0) + parts[0]
            kept[t["owner"]] = kept.get(t["owner"], 0) + parts[2] - hub
            validators, platform = validators + parts[1], platform + parts[2] + fee
        checks = dict(apportion(max(0, validators + note["validation"]), note["inputs"].get("validators", [])))
        wishes = [{"account": w["account"], "weight": max(0, min(w["weight"], part(kept.get(w["account"], 0), 9_000)))} for w in note["inputs"].get("standby", [])]
        standby = dict(apportion(min(sum(w["weight"] for w in wishes), note["subsidy"]), wishes))
        posts = [{"op": "share", "epoch": e, "validators_micro": str(validators), "platform_micro": str(platform)}, *credits]
        for a in sorted(set(nodes) | set(checks) | set(standby)):
            mine = [x.get(a, 0) for x in (nodes, checks, standby)]
            pay = sum(gross for b, at, gross in self.pays if b == a and at > note["at"] - 7 * DAY) + sum(mine)
            withheld = min(part(sum(mine), 2_000), max(0, pay - self.get(f"bond:{a}")))
            if sum(mine) and f"pay/{e}/{a}" not in self.keys:
                posts.append({"op": "pay", "epoch": e, "account": a, **dict(zip(("node_micro", "validator_micro", "standby_micro"), map(str, mine))), "withheld_micro": str(withheld)})
        return next(("refused" for post in [*posts, *adjusts, {"op": "settle", "epoch": e}] if self.post(post) == "refused"), "ok")

def run(lines, expect=False):
    ledger, out = Ledger(), []
    for line in map(str.strip, lines):
        word, _, rest = line.partition(" ")
        if word == "@":
            day, clock = rest.split(" ")
            h, m, s = clock.split(":")
            ledger.now = int(day) * DAY + int(h) * 3_600_000 + int(m) * 60_000 + int(s.replace(".", ""))
        elif word in ("?", ">"):
            out.append(ledger.post(json.loads(rest)))
            assert word == "?" or out[-1] != "refused", line
        elif word == "!": assert ledger.post(json.loads(rest.partition(" ")[2])) == "refused", line
        elif word == "settle": out.append("settled " + ledger.settlement(int(rest)))
        elif word == "=":
            account, amount = rest.split(" ")
            assert ledger.get(account) == int(amount.replace(",", "")), (line, ledger.get(account))
    order = ["external", "customer", "hold", "charges-pending", "pool", "payout", "bond", "withdrawal-pending", "platform", "validation", "subsidy", "reserve", "receivable", "bad-debt", "rounding"]
    some = sorted((order.index(a.split(":")[0]), a, b) for a, b in ledger.balance.items() if b)
    return out + [f"{a} {b}" for _, a, b in some] + [f"entries {ledger.entries}", "end"]

def rule(name, i):
    charge = lambda pair: dict(zip(("charge_micro", "fee_micro"), pair))
    parts = lambda triple: dict(zip(("node_micro", "validators_micro", "platform_micro"), triple))
    if name == "digest": return digest(i)
    if name == "charge": return charge(price(i["terms"], i["used"]))
    if name == "quote": return charge(price(i["terms"], i["used"], math.ceil))
    if name == "receipt":
        t, after = i["terms"], plus(i["before"], i["used"])
        def fraction(x): return f"{x.numerator}/{x.denominator}"
        lines = [{"line": l, "units": i["used"].get(PRICES[l][3], 0), "exact": fraction(exact(t, l, i["used"])),
                  "posted_micro": math.floor(exact(t, l, after)) - math.floor(exact(t, l, i["before"]))} for l in PRICES if exact(t, l, i["used"])]
        return {"lines": lines, "posted": charge(a - b for a, b in zip(price(t, after), price(t, i["before"])))}
    if name == "split": return parts(divide(i["charge_micro"], i["shares"]))
    if name == "settle":
        credit, hub, three = settle(i["charge_micro"], i["shares"], i["faults"])
        return {"node_credit_micro": credit, "hub_credit_micro": hub, "parts": parts(three)}
    if name == "apportion": return [list(x) for x in apportion(i["sum_micro"], i["weights"])]
    if name == "standby": return max(0, min(i["wished_micro"], part(i["platform_micro"], 9_000)))
    if name == "usage": return billed(i["observations"], i["from_ms"], i["to_ms"])
    if name == "correction":
        def ms(some): return billed([r["observation"] for r in some], i["from_ms"], i["to_ms"])["duration_ms"]
        now = ms([r for r in i["received"] if r["received_ms"] < i["cut_off_ms"]])
        return {"billed_ms": now, "correction_ms": ms(i["received"]) - now}
    if name == "tokens":
        names, seen = ("tokens_in", "tokens_out", "tokens_cached"), {}
        for r in i:
            for n in names: seen.setdefault((r["source"], r["sequence"]), {}).setdefault(n, set()).update({r[n]} - {None})
        listed = lambda chosen: [list(k) for k, v in sorted(seen.items()) if chosen(v)]
        return {**{n: sum(min(v[n], default=0) for v in seen.values()) for n in names},
                "missing": listed(lambda v: any(not v[n] for n in names)), "conflicting": listed(lambda v: any(len(v[n]) > 1 for n in names))}
    if name == "judge": return judge(i["tier"], i["samples"])
    if name == "withheld": return min(part(i["gross_micro"], 2_000), max(0, i["pay_micro"] - i["bond_micro"]))
    if name == "root": return root(i).hexdigest()
    if name == "pseudonym": return hmac.new(bytes.fromhex(i["secret"]), f"{i['kind']}:{i['account']}/{i['epoch']}".encode(), "sha256").hexdigest()

def document(path):
    histories, checked = {}, 0
    for block in open(path, encoding="utf-8").read().split("\n```")[1::2]:
        info, _, text = block.partition("\n")
        kind, _, name = info.partition(" ")
        if kind == "rule":
            given, told = (json.loads(next(l[len(p):] for l in text.split("\n") if l.startswith(p))) for p in ("in ", "out "))
            assert rule(name, given) == told, (name, rule(name, given), told)
        elif kind == "history":
            name, _, before = name.partition(" after ")
            histories[name] = histories.get(before, []) + text.split("\n")
            run(histories[name])
        checked += kind in ("rule", "history")
    print(f"{checked} examples are true")

if __name__ == "__main__":
    if sys.argv[1:2] == ["--document"]: sys.exit(document(sys.argv[2]))
    lines = []
    for line in sys.stdin:
        if line.strip() != "end": lines.append(line); continue
        print("\n".join(run(lines)), flush=True)
        lines = []
