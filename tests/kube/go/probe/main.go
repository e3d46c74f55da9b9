// probe is what the pods of the tests run: a server that says who answers whom, a client
// that asks many servers at once, and a stream of numbered packets that counts its losses.
// A static Go program needs neither libraries nor a shell in its image.
package main

import (
	"fmt"
	"os"
)

const usage = `usage: probe serve [PORT]           answer on HTTP and echo UDP, both on PORT (8080)
       probe ask URL...              one line of JSON for each: who answered, to whom
       probe lookup NAME...          one line of JSON for each: its addresses
       probe stream ADDRESS:PORT     200 packets a second, echoed; JSON when it gets SIGTERM
       probe pause                   hold a pod's namespaces`

func main() {
	if len(os.Args) < 2 {
		fatal(usage)
	}
	args := os.Args[2:]
	switch verb := os.Args[1]; {
	case verb == "serve" && len(args) <= 1:
		port := "8080"
		if len(args) == 1 {
			port = args[0]
		}
		serve(port)
	case verb == "ask" && len(args) > 0:
		ask(args)
	case verb == "lookup" && len(args) > 0:
		lookup(args)
	case verb == "stream" && len(args) == 1:
		stream(args[0])
	case verb == "pause":
		pause()
	default:
		fatal(usage)
	}
}

func fatal(why any) {
	fmt.Fprintln(os.Stderr, why)
	os.Exit(1)
}
