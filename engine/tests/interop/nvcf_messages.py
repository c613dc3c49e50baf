"""NVIDIA's messages, written from the tables of the contract (5.1, 5.3, 6.2, 6.3): the numbers here
are an opinion of their own on those that the programs use."""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2

FIELD = descriptor_pb2.FieldDescriptorProto
KINDS = {"string": FIELD.TYPE_STRING, "bool": FIELD.TYPE_BOOL, "enum": FIELD.TYPE_INT32}

# name -> {field: (number, kind)}; a kind with a dot is another message, one with [] is repeated.
MESSAGES = {
    "WorkerInvokeFunctionRequest": {
        "requestId": (1, "string"), "ncaId": (2, "string"), "subject": (3, "string"),
        "requestTime": (8, ".google.protobuf.Timestamp"),
        "statefulConfig": (9, ".nvcf.StatefulConfig")},
    "StatefulConfig": {
        "nvcfRegionOfInvoker": (3, "string"),
        "connectionConfigs": (4, "[].nvcf.ConnectionConfig")},
    "ConnectionConfig": {
        "http1Config": (1, ".nvcf.HttpConfig"), "http3Config": (2, ".nvcf.HttpConfig")},
    "HttpConfig": {"proxyURI": (1, "string"), "proxyAuthorizationToken": (2, "string")},
    "StatefulSessionTracking": {
        "functionId": (1, "string"), "functionVersionId": (2, "string"),
        "invokerNcaId": (3, "string")},
    "ProxyAuthRequest": {
        "clientAuthorizationToken": (1, "string"), "functionId": (2, "string"),
        "functionVersionId": (3, "string")},
    "ProxyAuthResponse": {
        "functionId": (1, "string"), "functionVersions": (2, "[].nvcf.FunctionVersion"),
        "clientAuthSubject": (3, "string"), "clientNcaId": (4, "string")},
    "FunctionVersion": {
        "functionVersionId": (1, "string"), "type": (2, "enum"), "backendType": (3, "enum"),
        "hasRateLimit": (4, "bool"), "syncCheck": (5, "bool")},
    "RateLimitRequest": {
        "ncaId": (1, "string"), "functionId": (2, "string"), "functionVersionId": (3, "string")},
    "RateLimitResponse": {"result": (1, "enum")},
}


def _file():
    file = descriptor_pb2.FileDescriptorProto(
        name="nvcf/of_the_contract.proto", package="nvcf", syntax="proto3",
        dependency=["google/protobuf/timestamp.proto"])
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            label = FIELD.LABEL_REPEATED if kind.startswith("[]") else FIELD.LABEL_OPTIONAL
            kind = kind.removeprefix("[]")
            told = {"type_name": kind} if kind.startswith(".") else {}
            message.field.add(name=field, number=number, label=label,
                              type=KINDS.get(kind, FIELD.TYPE_MESSAGE), **told)
    return file


_pool = descriptor_pool.DescriptorPool()
_pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
_pool.Add(_file())


def _class(name):
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"nvcf.{name}"))


Work = _class("WorkerInvokeFunctionRequest")
Record = _class("StatefulSessionTracking")
AuthRequest, AuthResponse = _class("ProxyAuthRequest"), _class("ProxyAuthResponse")
RateLimitRequest, RateLimitResponse = _class("RateLimitRequest"), _class("RateLimitResponse")


def work(request_id, uri, token, nca="nca-a"):
    """A work message as the proxy writes it (contract 6.2)."""
    message = Work(requestId=request_id, ncaId=nca, subject="subject-a")
    message.requestTime.GetCurrentTime()
    message.statefulConfig.nvcfRegionOfInvoker = "ncp"
    config = message.statefulConfig.connectionConfigs.add().http1Config
    config.proxyURI, config.proxyAuthorizationToken = uri, token
    return message.SerializeToString()
