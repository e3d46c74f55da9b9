package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Answer is what came of one question.
type Answer struct {
	// To is the URL or the name.
	To string `json:"to"`
	// Greeting is set when a probe answered.
	*Greeting
	// Status is the HTTP status.
	Status int `json:"status,omitempty"`
	// Addresses are a name's.
	Addresses []string `json:"addresses,omitempty"`
	// Error says why there is no answer.
	Error string `json:"error,omitempty"`
}

// each puts all questions at the same time and prints the answers in their order.
func each(questions []string, put func(string) Answer) {
	answers := make([]chan Answer, len(questions))
	for i, question := range questions {
		answers[i] = make(chan Answer, 1)
		go func() { answers[i] <- put(question) }()
	}
	out := json.NewEncoder(os.Stdout)
	for _, answer := range answers {
		out.Encode(<-answer)
	}
}

func ask(urls []string) {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		// Whether the API server is reached is the question, not who it is.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
	each(urls, func(url string) Answer {
		response, err := client.Get(url)
		if err != nil {
			return Answer{To: url, Error: err.Error()}
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			return Answer{To: url, Status: response.StatusCode, Error: err.Error()}
		}
		answer := Answer{To: url, Status: response.StatusCode}
		var greeting Greeting
		if json.Unmarshal(body, &greeting) == nil && greeting.Pod != "" {
			answer.Greeting = &greeting
		}
		return answer
	})
}

func lookup(names []string) {
	each(names, func(name string) Answer {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		addresses, err := net.DefaultResolver.LookupHost(ctx, name)
		if err != nil {
			return Answer{To: name, Error: err.Error()}
		}
		return Answer{To: name, Addresses: addresses}
	})
}

// Loss is what came of a stream.
type Loss struct {
	Sent     int `json:"sent"`
	Received int `json:"received"`
	// Gap is the longest time without an echo.
	Gap string `json:"gap"`
}

// pace is the time between two packets: short against any gap that matters.
const pace = 5 * time.Millisecond

func stream(to string) {
	connection, err := net.Dial("udp", to)
	if err != nil {
		fatal(err)
	}
	widen(connection.(*net.UDPConn))
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	done := make(chan Loss)
	go func() { done <- count(connection) }()
	packets, start := 0, time.Now()
	for {
		select {
		case <-end:
			// Echoes that are on their way still count.
			connection.SetReadDeadline(time.Now().Add(3 * time.Second))
			loss := <-done
			loss.Sent = packets
			json.NewEncoder(os.Stdout).Encode(loss)
			return
		case <-time.After(time.Until(start.Add(time.Duration(packets) * pace))):
			fmt.Fprintf(connection, "%d", packets)
			packets++
		}
	}
}

func count(connection net.Conn) Loss {
	seen := make(map[string]bool)
	last, longest := time.Now(), time.Duration(0)
	buffer := make([]byte, 64)
	for {
		n, err := connection.Read(buffer)
		if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
			return Loss{Received: len(seen), Gap: longest.Round(time.Millisecond).String()}
		}
		if err != nil {
			continue // A refusal by ICMP is a loss like any other.
		}
		longest, last = max(longest, time.Since(last)), time.Now()
		seen[string(buffer[:n])] = true
	}
}
