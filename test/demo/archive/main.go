// Command archive writes the demonstration's archive.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/tarlift/tarlift/test/stage"
)

func main() {
	output := flag.String("o", "bin/demo.tar", "`file` to write")
	version := flag.String("version", "1.0", "`tag` of the images")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := stage.WriteArchive(ctx, *output, *version)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "archive:", err)
		os.Exit(1)
	}
}
