// Command pause holds the namespaces of a pod until it is killed.
package main

import "syscall"

func main() {
	for {
		_ = syscall.Pause()
	}
}
