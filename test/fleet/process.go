package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// process is the ID of one that is measured.
type process int

// ticks is the unit of times in /proc, USER_HZ: 100 a second on every platform that Go runs on.
const ticks = 100

// cpu is the processor time that it has used.
func (p process) cpu() (time.Duration, error) {
	fields, err := p.stat()
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, field := range fields[11:13] { // utime and stime, fields 14 and 15 of proc(5)
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return time.Duration(sum) * time.Second / ticks, nil
}

// stat gives the fields of /proc/PID/stat that follow the program's name.
func (p process) stat() ([]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p))
	if err != nil {
		return nil, err
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return nil, fmt.Errorf("process %d: %q", p, text)
	}
	return fields, nil
}

// memory gives a size in /proc/PID/status, in bytes: VmRSS, VmHWM (the largest VmRSS), RssAnon.
func (p process) memory(key string) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		if fields := strings.Fields(value); name == key && len(fields) > 0 {
			kib, err := strconv.ParseInt(fields[0], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process %d: no %s", p, key)
}

// childNamed finds a process that this one has started.
func childNamed(name string) (process, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	for _, dir := range dirs {
		id, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		comm, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil || strings.TrimSpace(string(comm)) != name {
			continue
		}
		// The second field after the name, counted from the state, is the parent.
		if fields, err := process(id).stat(); err == nil && fields[1] == strconv.Itoa(os.Getpid()) {
			return process(id), nil
		}
	}
	return 0, fmt.Errorf("no child is a %s", name)
}
