// A gRPC server that answers each call with its own message: the function behind every way that
// tools/soak/sessions.py compares.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
)

func echo(w http.ResponseWriter, r *http.Request) {
	message, err := io.ReadAll(r.Body)
	status := "0"
	if err != nil {
		status = "13"
	}
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status")
	_, _ = w.Write(message)
	w.Header().Set("Grpc-Status", status)
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("ready %s\n", listener.Addr())
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: http.HandlerFunc(echo), Protocols: protocols}
	fmt.Fprintln(os.Stderr, server.Serve(listener))
}
