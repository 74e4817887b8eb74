// Command greeter is what the demonstration's images run: it says who it is, and stays.
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
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	fmt.Printf("greeter %s on %s/%s: hello from %s\n", version, runtime.GOOS, runtime.GOARCH, os.Getenv("NODE_NAME"))
	<-stop
}
