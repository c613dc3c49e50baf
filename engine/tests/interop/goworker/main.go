// Command goworker is a worker of Go's own net/http: it asks for work, dials back with CONNECT
// and serves the connection with Go's HTTP/2 server. Its function returns the body reversed.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"sync"
)

type work struct {
	RequestID   string `json:"requestId"`
	Connections []struct {
		HTTP1 struct {
			ProxyURI                string `json:"proxyUri"`
			ProxyAuthorizationToken string `json:"proxyAuthorizationToken"`
		} `json:"http1"`
	} `json:"connections"`
}

func main() {
	gateway, key, function, version := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	for {
		item, err := poll(gateway, key, function, version)
		if err == nil && item != nil {
			err = serve(item)
		}
		if err != nil {
			fmt.Println("worker:", err)
			os.Exit(1)
		}
	}
}

func poll(gateway, key, function, version string) (*work, error) {
	body, _ := json.Marshal(map[string]any{
		"functionId": function, "functionVersionId": version, "slots": 1, "requestIds": []string{},
	})
	request, err := http.NewRequest("POST", gateway+"/v1/work", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+key)
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusNoContent:
		return nil, nil
	case http.StatusOK:
		item := new(work)
		return item, json.NewDecoder(response.Body).Decode(item)
	}
	return nil, fmt.Errorf("work: %s", response.Status)
}

func serve(item *work) error {
	connection := item.Connections[0].HTTP1
	target, err := url.Parse(connection.ProxyURI)
	if err != nil {
		return err
	}
	tcp, err := net.Dial("tcp", target.Host)
	if err != nil {
		return err
	}
	request := &http.Request{Method: http.MethodConnect, URL: target, Host: target.Host,
		Header: http.Header{}}
	request.Header.Set("Authorization", "Bearer "+connection.ProxyAuthorizationToken)
	request.Header.Set("X-Request-ID", item.RequestID)
	if err := request.Write(tcp); err != nil {
		return err
	}
	reader := bufio.NewReader(tcp)
	response, err := http.ReadResponse(reader, request)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("CONNECT: %s", response.Status)
	}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	protocols.SetHTTP1(true)
	server := &http.Server{Handler: http.HandlerFunc(reverse), Protocols: protocols}
	// Serve returns when the one connection has been accepted and the listener is done.
	go server.Serve(&single{connection: &buffered{tcp, reader}, closed: make(chan struct{})})
	return nil
}

func reverse(answer http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(request.Body)
	if err != nil {
		return
	}
	slices.Reverse(body)
	answer.Header().Set("X-Served-By", "go")
	answer.Header().Set("Trailer", "X-Trailer")
	answer.Write(body)
	answer.Header().Set("X-Trailer", strconv.Itoa(len(body)))
}

// buffered reads what lay behind the answer's head first.
type buffered struct {
	net.Conn
	reader *bufio.Reader
}

func (b *buffered) Read(into []byte) (int, error) { return b.reader.Read(into) }

// single is a listener that gives out one connection.
type single struct {
	connection net.Conn
	once       sync.Once
	closed     chan struct{}
}

func (s *single) Accept() (net.Conn, error) {
	var next net.Conn
	s.once.Do(func() { next = s.connection })
	if next != nil {
		return next, nil
	}
	<-s.closed
	return nil, net.ErrClosed
}

func (s *single) Close() error   { return nil }
func (s *single) Addr() net.Addr { return s.connection.LocalAddr() }
