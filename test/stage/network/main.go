// Command network stands for a cluster's network add-on. In a pod it installs itself on the node, as a CNI plugin in the
// directory of its argument with a configuration beside it; as the plugin it gives each pod an address, and nothing else.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

const plugin = "tarlift-test-network"

func main() {
	var err error
	switch {
	case os.Getenv("CNI_COMMAND") != "":
		err = answer(os.Getenv("CNI_COMMAND"))
	case len(os.Args) == 2:
		err = install(os.Args[1])
	default:
		err = errors.New("usage: network DIRECTORY")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// install writes the configuration last: containerd looks at it at once.
func install(dir string) error {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, plugin), self, 0o755); err != nil {
		return err
	}
	conflist := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"test","plugins":[{"type":%q}]}`, plugin)
	if err := os.WriteFile(filepath.Join(dir, "10-test.conflist"), []byte(conflist), 0o644); err != nil {
		return err
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	<-ended
	return nil
}

// answer does what CNI's specification asks of a plugin.
func answer(command string) error {
	type object = map[string]any
	result := object{"cniVersion": "1.0.0"}
	switch command {
	case "VERSION":
		result["supportedVersions"] = []string{"1.0.0"}
	case "ADD":
		h := fnv.New32()
		_, _ = h.Write([]byte(os.Getenv("CNI_CONTAINERID")))
		n := h.Sum32()
		result["interfaces"] = []object{{"name": os.Getenv("CNI_IFNAME"), "sandbox": os.Getenv("CNI_NETNS")}}
		result["ips"] = []object{{"interface": 0, "address": fmt.Sprintf("10.88.%d.%d/16", n>>8&255, n&255)}}
	default:
		return nil
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}
