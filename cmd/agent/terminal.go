package main

import "golang.org/x/sys/unix"

// hasWindow tells whether a file descriptor is a terminal: only these have terminal attributes.
func hasWindow(fd uintptr) bool {
	_, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
	return err == nil
}
