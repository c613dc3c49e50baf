"""Who may log in to a NATS server, each kind of it: what the server's file says, and what a gateway
that has it writes into its own."""

import base64
import hashlib
import json
import os
import time
from pathlib import Path

import nkeys

from behind import Authority
from nats_rig import PASSWORD, USER
from nvcf_bed import make_nkey

PREFIXES = {"operator": nkeys.PREFIX_BYTE_OPERATOR, "account": nkeys.PREFIX_BYTE_ACCOUNT,
            "user": nkeys.PREFIX_BYTE_USER}
WORKERS = f"{{ user: {USER}, password: {PASSWORD} }}"
UNLIMITED = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1,
             "wildcards": True, "conn": -1, "leaf": -1}
JETSTREAM = {"mem_storage": 256 << 20, "disk_storage": 256 << 20, "streams": -1, "consumer": -1}


class Key:
    """An operator, an account or a user: a key pair, and what it signs."""

    def __init__(self, kind):
        self.seed = nkeys.encode_seed(os.urandom(32), PREFIXES[kind])
        self.pair = nkeys.from_seed(bytearray(self.seed))
        self.id = self.pair.public_key.decode()

    def token(self, kind, subject, name, claims, life=None):
        """A JWT in NATS' form, version 2, that this key has issued for another, or for itself."""
        now = int(time.time())
        body = {"jti": "", "iat": now, "iss": self.id, "name": name, "sub": subject,
                "nats": {**claims, "type": kind, "version": 2}}
        if life is not None:
            body["exp"] = now + life
        digest = hashlib.new("sha512_256", json.dumps(body).encode()).digest()
        body["jti"] = base64.b32encode(digest).decode().rstrip("=")
        signed = ".".join(plain(part) for part in (
            json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode(), json.dumps(body).encode()))
        return f"{signed}.{plain(self.pair.sign(signed.encode()))}"


def plain(octets):
    return base64.urlsafe_b64encode(octets).decode().rstrip("=")


class Operator:
    """An operator with one account for gateways and workers, and the system's."""

    def __init__(self):
        self.key, self.account, self.system = Key("operator"), Key("account"), Key("account")
        self.own = self.key.token("operator", self.key.id, "operator", {
            "system_account": self.system.id})
        self.accounts = {
            key.id: self.key.token("account", key.id, name, {
                "limits": {**UNLIMITED, **limits}, "default_permissions": {"pub": {}, "sub": {}}})
            for key, name, limits in ((self.account, "gateways", JETSTREAM),
                                      (self.system, "system", {}))}

    def server(self):
        """What a server's file has of it."""
        known = "\n".join(f"  {id}: {token}" for id, token in self.accounts.items())
        return (f"operator: {self.own}\nsystem_account: {self.system.id}\nresolver: MEMORY\n"
                f"resolver_preload: {{\n{known}\n}}\n")

    def credentials(self, path, life=None, account=None):
        """A file of credentials, as NATS' own tool writes it, for a user of this account."""
        user = Key("user")
        token = (account or self.account).token("user", user.id, "gateway", {
            "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1}, life)
        Path(path).write_text(
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n"
            f"------END USER NKEY SEED------\n")
        return path


class Login:
    """One kind: `server` goes into the server's file, `right` and `wrong` into a gateway's
    `[nats]`; of the wrong ones each has what the log names as its fix."""

    def __init__(self, server, right, wrong, scheme="nats", host="127.0.0.1", **client):
        self.server, self.right, self.wrong = server, right, wrong
        self.scheme, self.host, self.client = scheme, host, client


def written(folder, name, text):
    path = Path(folder) / name
    path.write_text(text)
    return f'"{path}"'


def user(folder):
    right = written(folder, "right", "pass word\n")
    wrong = written(folder, "wrong", "password")
    return Login(f'authorization {{ users: [ {{ user: me, password: "pass word" }}, {WORKERS} ] }}',
                 f'user = "me"\npassword_file = {right}',
                 {f'user = "me"\npassword_file = {wrong}': "nats.password_file",
                  "": "name nats.nkey_file"})


def token(folder):
    return Login('authorization { token: "to ken" }',
                 f"token_file = {written(folder, 'right', 'to ken')}",
                 {f"token_file = {written(folder, 'wrong', 'token')}": "nats.token_file"},
                 token="to ken")


def nkey(folder):
    (seed, public), (other, _) = make_nkey(), make_nkey()
    return Login(f"authorization {{ users: [ {{ nkey: {public} }}, {WORKERS} ] }}",
                 f"nkey_file = {written(folder, 'right', seed)}",
                 {f"nkey_file = {written(folder, 'wrong', other)}": "nats.nkey_file"})


def creds(folder):
    """JWTs of an operator; and of users that have expired, or of an account nobody knows."""
    operator = Operator()
    folder = Path(folder)
    right = operator.credentials(folder / "right.creds")
    late = operator.credentials(folder / "late.creds", life=-60)
    strange = operator.credentials(folder / "strange.creds", account=Key("account"))
    return Login(operator.server(), f'credentials_file = "{right}"',
                 {f'credentials_file = "{path}"': "nats.credentials_file"
                  for path in (late, strange)}, user_credentials=str(right))


def tls(folder, more=""):
    authority = Authority(folder)
    cert, key = authority.issue("nats")
    return authority, f'tls {{ cert_file: "{cert}", key_file: "{key}"{more} }}'


def with_authority(folder):
    """A server with a certificate of a private authority."""
    authority, server = tls(folder)
    return Login(f"{server}\nauthorization {{ users: [ {WORKERS} ] }}",
                 f'user = "{USER}"\npassword_file = {written(folder, "right", PASSWORD)}\n'
                 f'ca_file = "{authority.cert}"',
                 {f'user = "{USER}"\npassword_file = "{folder}/right"': "nats.ca_file"},
                 scheme="tls", tls=authority.context(), user=USER, password=PASSWORD)


def with_certificate(folder):
    """A server that knows its clients by their certificates."""
    authority = Authority(folder)
    more = f', ca_file: "{authority.cert}", verify_and_map: true'
    cert, key = authority.issue("nats")
    mine, its_key = authority.issue("gateway")
    other, other_key = authority.issue("other")
    context = authority.context()
    context.load_cert_chain(mine, its_key)
    ca = f'ca_file = "{authority.cert}"\n'
    return Login(f'tls {{ cert_file: "{cert}", key_file: "{key}"{more} }}\n'
                 'authorization { users: [ { user: "CN=gateway" } ] }',
                 f'{ca}cert_file = "{mine}"\nkey_file = "{its_key}"',
                 {ca: "nats.cert_file",
                  f'{ca}cert_file = "{other}"\nkey_file = "{other_key}"': "for this certificate"},
                 scheme="tls", tls=context)


LOGINS = {"user": user, "token": token, "nkey": nkey, "creds": creds, "ca": with_authority,
          "certificate": with_certificate}
