// Command greeter is what the demonstration's images run: it says who it is, and stays. `greeter has FILE` succeeds when
// there is such a file.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

var version = "unknown"

func main() {
	if len(os.Args) == 3 && os.Args[1] == "has" {
		if _, err := os.Stat(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	fmt.Printf("greeter %s on %s/%s: hello from %s\n", version, runtime.GOOS, runtime.GOARCH, os.Getenv("NODE_NAME"))
	<-stop
}
