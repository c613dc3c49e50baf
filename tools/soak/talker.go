// A server that says again what it is told, by gRPC and by WebSocket: the function behind
// tools/soak/websockets.py. A Close is answered, and the server is then the first to close.
package main

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
)

const (
	guid    = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11" // RFC 6455, section 1.3
	closing = 8
	longest = 125 // of messages here
)

func talk(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") == "" {
		echo(w, r)
		return
	}
	conn, buffered, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + guid))
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"+
		"Upgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(sum[:]))
	for again := true; again; {
		again = answer(conn, buffered.Reader)
	}
}

// Answers one short message with itself; false after a Close, or when there is none.
func answer(conn net.Conn, from *bufio.Reader) bool {
	var head [6]byte
	if _, err := io.ReadFull(from, head[:]); err != nil || head[1]&0x7f > longest {
		return false
	}
	payload := make([]byte, head[1]&0x7f)
	if _, err := io.ReadFull(from, payload); err != nil {
		return false
	}
	key := binary.BigEndian.Uint32(head[2:])
	for i := range payload {
		payload[i] ^= byte(key >> (24 - 8*(i%4)))
	}
	_, err := conn.Write(append([]byte{head[0], byte(len(payload))}, payload...))
	return err == nil && head[0]&0xf != closing
}

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
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: http.HandlerFunc(talk), Protocols: protocols}
	fmt.Fprintln(os.Stderr, server.Serve(listener))
}
