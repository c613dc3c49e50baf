"""Makes of umoci's config.json what a cluster runs: bundle.py CONFIG PROFILE NETWORK FORBIDDEN

The seccomp profile is in the form of container engines (as for Kubernetes); runtimes take its rules
for the one architecture. FORBIDDEN are calls that are left out of it."""

import json
import resource
import sys

ENVIRONMENT = {
    "POD_IP": "10.0.0.7",
    "NVCF_FQDN_GRPC": "http://127.0.0.1:9",
    "NATS_FQDN": "nats://127.0.0.1:9",
    "ENABLE_HTTP1_CONNECT": "true",
    "GEO_DISABLED": "true",
    "RINGWAY__CORES__COUNT": "2",
}
# What it begins with; the gateway raises the first to the second. Nobody gives more than he has.
HARD = min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
FILES = {"type": "RLIMIT_NOFILE", "soft": 1024, "hard": HARD}
MEMORY = {"type": "RLIMIT_MEMLOCK", "soft": 8 << 20, "hard": 8 << 20}


def main(path, profile, network, forbidden):
    with open(path) as file:
        config = json.load(file)
    process = config["process"]
    assert process["args"] == ["/usr/bin/ringway"], process["args"]
    assert (process["user"]["uid"], process["user"]["gid"]) == (1000, 1000), process["user"]
    process["terminal"] = False
    process["noNewPrivileges"] = True
    process["capabilities"] = {}
    process["rlimits"] = [FILES, MEMORY]
    own = [entry for entry in process["env"] if entry.split("=", 1)[0] not in ENVIRONMENT]
    process["env"] = own + [f"{name}={value}" for name, value in ENVIRONMENT.items()]
    config["root"]["readonly"] = True
    config["mounts"] = [mount for mount in config["mounts"]
                        if mount["type"] in ("proc", "tmpfs", "devpts", "mqueue")]
    linux = config["linux"]
    linux["namespaces"] = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]
    linux["namespaces"].append({"type": "network", "path": network})
    linux.pop("resources", None)
    with open(profile) as file:
        rules = json.load(file)
    left = [{"names": [name for name in rule["names"] if name not in forbidden],
             "action": rule["action"]} for rule in rules["syscalls"]]
    linux["seccomp"] = {"defaultAction": rules["defaultAction"],
                        "defaultErrnoRet": rules["defaultErrnoRet"],
                        "architectures": [entry["architecture"] for entry in rules["archMap"]],
                        "syscalls": left}
    with open(path, "w") as file:
        json.dump(config, file)


main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4].split())
