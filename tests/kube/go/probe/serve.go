package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

// Greeting is what the server says of one request.
type Greeting struct {
	// Pod is the server's host name.
	Pod string `json:"pod"`
	// Saw is the client's address as the server saw it.
	Saw string `json:"saw"`
	// At is the server's own address that the request arrived at.
	At string `json:"at"`
}

func serve(port string) {
	host, err := os.Hostname()
	if err != nil {
		fatal(err)
	}
	packets, err := net.ListenPacket("udp", ":"+port)
	if err != nil {
		fatal(err)
	}
	widen(packets.(*net.UDPConn))
	go echo(packets)
	// As process 1 of a container it gets no signal that it does not ask for.
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	go func() {
		<-end
		os.Exit(0)
	}()
	fmt.Println("serving as", host)
	fatal(http.ListenAndServe(":"+port, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		saw, _, _ := net.SplitHostPort(r.RemoteAddr)
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		at, _, _ := net.SplitHostPort(local.String())
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(Greeting{host, plain(saw), plain(at)})
	})))
}

// plain takes the IPv6 form of an IPv4 address off.
func plain(address string) string {
	if ip := net.ParseIP(address); ip != nil {
		return ip.String()
	}
	return address
}

// widen lets a socket hold what arrives while a busy machine does not run us for some
// seconds: that is no loss of the network's. It takes CAP_NET_ADMIN; a pod has the usual size.
func widen(connection *net.UDPConn) {
	raw, err := connection.SyscallConn()
	if err != nil {
		fatal(err)
	}
	raw.Control(func(fd uintptr) {
		syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUFFORCE, 8<<20)
	})
}

func echo(packets net.PacketConn) {
	buffer := make([]byte, 65536)
	for {
		n, from, err := packets.ReadFrom(buffer)
		if err != nil {
			fatal(err)
		}
		packets.WriteTo(buffer[:n], from)
	}
}

// pause is the process that a pod's namespaces belong to; it buries orphans.
func pause() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}
