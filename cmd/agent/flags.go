package main

import (
	"os"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/pflag"

	"github.com/tarlift/tarlift/internal/cli"
	"github.com/tarlift/tarlift/internal/importer"
)

// addContainerd adds the flags that say which containerd to use, and how.
func addContainerd(flags *pflag.FlagSet, o *importer.Options) {
	cli.AddSocket(flags, o)
	flags.StringVar(&o.Platform, "platform", "", "`platform` to import, such as linux/arm64 (default: this machine's)")
	flags.StringVar(&o.Snapshotter, "snapshotter", "",
		"`name` of the snapshotter to unpack into (default: the one that CRI uses, else the namespace's)")
	flags.Var(&o.Reserve, "disk-reserve",
		"`size` (10Gi) or share (20%) to keep free on each file system that containerd writes to; 0 for no reserve")
	flags.StringVar(&o.ContainerdRoot, "containerd-root", "",
		"`directory` on the file system of containerd's root, if the root itself is not visible here (default: detected)")
}

// addConcurrency adds the flag of commands that import.
func addConcurrency(flags *pflag.FlagSet, o *importer.Options) {
	flags.Uint16Var(&o.Concurrency, "concurrency", 0,
		"`number` of blobs to transfer, and of layers to unpack, at a time (default: depends on the cores and the source)")
}

// addNodeName adds the flag of commands that are about one Node.
func addNodeName(flags *pflag.FlagSet, name *string) {
	flags.StringVar(name, "node-name", os.Getenv("NODE_NAME"), "`name` of this Node (default: $NODE_NAME)")
}

// addSecretNamespace adds the flag of commands that read sources' Secrets, or check the right to.
func addSecretNamespace(flags *pflag.FlagSet, namespace *string) {
	flags.StringVar(namespace, "secret-namespace", os.Getenv("POD_NAMESPACE"),
		"`namespace` of the Secrets that sources name (default: $POD_NAMESPACE)")
}

// importFlags are the flags of an import, apart from those of its source.
type importFlags struct {
	containerd importer.Options
	selection  cli.Selection
	digest     string
	index      string
	conflict   cli.Choice
	noUnpack   bool
	noPin      bool
	noRefs     bool
}

func (f *importFlags) add(flags *pflag.FlagSet) {
	f.conflict = cli.NewChoice("fail", "replace")
	addContainerd(flags, &f.containerd)
	f.selection.Add(flags)
	flags.StringVar(&f.digest, "digest", "", "required `digest` of the whole archive; the import then reads all of it")
	flags.StringVar(&f.index, "index-digest", "", "required `digest` of the archive's index.json")
	flags.Var(&f.conflict, "conflict", "what to do if a name exists with another digest and is not Tarlift's")
	flags.BoolVar(&f.noUnpack, "no-unpack", false, "do not unpack the images; the first container of each image does")
	flags.BoolVar(&f.noPin, "no-pin", false, "do not pin the images; the kubelet's garbage collection may then remove them")
	flags.BoolVar(&f.noRefs, "no-digest-refs", false, "do not publish name@digest beside each tag, for pods that name images by digest")
}

// request checks the flags' values and returns the importer's request.
func (f *importFlags) request() (importer.Request, error) {
	r := importer.Request{
		Unpack:  !f.noUnpack,
		Pin:     !f.noPin,
		Replace: f.conflict.Value == "replace",
	}
	var err error
	if r.Selection, err = f.selection.Parse(); err != nil {
		return r, err
	}
	r.Selection.DigestReferences = !f.noRefs
	if r.Digest, err = parseDigest("--digest", f.digest); err != nil {
		return r, err
	}
	if r.IndexDigest, err = parseDigest("--index-digest", f.index); err != nil {
		return r, err
	}
	if p := f.containerd.Platform; p != "" {
		if _, err := platforms.Parse(p); err != nil {
			return r, cli.Usagef("--platform %q: %w", p, err)
		}
	}
	return r, nil
}

func parseDigest(flag, value string) (digest.Digest, error) {
	if value == "" {
		return "", nil
	}
	d, err := digest.Parse(value)
	if err != nil {
		return "", cli.Usagef("%s %q: %w", flag, value, err)
	}
	return d, nil
}
