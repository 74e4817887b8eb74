package corpus

import (
	"archive/tar"
	"bytes"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
)

func file(name, content string) builder.Member { return builder.FileMember(name, []byte(content)) }

// tars are about members, whatever the format of the archive is.
func tars() []Case {
	k := usual()
	add := func(verdict Verdict, name string, m builder.Member, says ...string) Case {
		return edited(verdict, name, builder.Add(m), says...)
	}
	special := func(typeflag byte) builder.Member {
		return builder.Member{Name: "dev/special", Typeflag: typeflag, Mode: 0o644}
	}
	index := string(k.index)
	long := strings.Repeat("n", 80_000)
	return append([]Case{
		accepted(edited("", "as it should be", asItWas), k.Image),
		accepted(edited("", "./ before names, as GNU tar writes", builder.Prefix("./")), k.Image),
		accepted(edited("", "directories", builder.Add(builder.DirMember("./"), builder.DirMember("blobs/"), builder.DirMember("blobs/sha256/"))), k.Image),
		accepted(add("", "a file that nobody knows", file("README", "hello")), k.Image),
		accepted(add("", "a file with letters of other scripts", file("Ω/прочти.txt", "")), k.Image),
		accepted(add("", "a link that nobody needs", builder.LinkMember("latest", "../../etc/passwd")), k.Image),
		add(Invalid, "a character device", special(tar.TypeChar), `"dev/special"`, "a device"),
		add(Invalid, "a block device", special(tar.TypeBlock), `"dev/special"`, "a device"),
		add(Invalid, "a FIFO", special(tar.TypeFifo), `"dev/special"`, "a FIFO"),
		add(Invalid, "a contiguous file, which nobody makes", special(tar.TypeCont), `"dev/special"`),
		add(Invalid, "an absolute name", file("/index.json", index), `"/index.json"`, "absolute"),
		add(Invalid, "an absolute name of a file that nobody knows", file("/etc/cron.d/x", "* * * * * root id"), `"/etc/cron.d/x"`, "absolute"),
		add(Invalid, "a name that leads out", file("../../etc/passwd", ""), `"../../etc/passwd"`, ".."),
		add(Invalid, "a name that leads out and back", file("blobs/../index.json", index), `"blobs/../index.json"`, ".."),
		add(Invalid, "a name with a line break", file("read\nme", ""), `"read\nme"`, "control character"),
		add(Invalid, "a name that clears the screen", file("x\x1b[2Jy", ""), `"x\x1b[2Jy"`, "control character"),
		add(Invalid, "a name with a control character of Latin-1", file("x\u009b2Jy", ""), "control character"),
		add(LimitExceeded, "a name of 80 kB", file(long, ""), "name", fmt.Sprint(archive.MaxMemberName)),
		add(LimitExceeded, "a name of 80 kB in parts", file(strings.Repeat("x/", 40_000)+"y", ""), "name", fmt.Sprint(archive.MaxMemberName)),
		add(LimitExceeded, "a link to a name of 80 kB", builder.LinkMember("link", long), `"link"`, fmt.Sprint(archive.MaxMemberName)),
		lazy(LimitExceeded, "names of 20 MB in all", manyNames, "MiB of member names"),
		lazy(LimitExceeded, "a PAX header of 3 MiB", func() *Data { return paxHeader(3 << 20) }, "header", fmt.Sprint(archive.MaxTarHeaderBytes)),
		lazy(LimitExceeded, "headers of 512 kB each before a member", chainedHeaders, "header", fmt.Sprint(archive.MaxTarHeaderBytes)),
		lazy(LimitExceeded, "a million members", func() *Data { return manyMembers(1_000_000) }, fmt.Sprint(archive.MaxMembers, " members")),
		lazy(LimitExceeded, "a million blobs of 8 bytes", func() *Data { return manyBlobs(1_000_000) }, fmt.Sprint(archive.MaxMembers, " members")),
		of(Invalid, "a sparse file of 2 GiB in 3 KiB, by GNU", gnuSparse(), `"layer.tar"`, "sparse"),
		of(Invalid, "a sparse file of 2 GiB in 3 KiB, by PAX", paxSparse(), `"layer.tar"`, "sparse"),
		of(Invalid, "a negative size", resized("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), "tar header at byte"),
		of(Invalid, "a size of almost 2^63", resized("\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff"), `"layer.tar"`, "size"),
		of(Truncated, "a size of 2^62", resized("\x80\x00\x00\x00\x40\x00\x00\x00\x00\x00\x00\x00"), `"layer.tar"`),
	}, twins()...)
}

// manyNames are 5,000 empty files with long names.
func manyNames() *Data {
	const n = 5000
	name := func(k int64) []byte {
		return must(builder.TarBytes(file(fmt.Sprintf("%s/%06d", strings.Repeat("n", 4000), k), "")))
	}
	size := len(name(0)) - 2*blockSize
	return join(counted(n, size, func(k int64) []byte { return name(k)[:size] }), end())
}

// manyMembers are files of a byte, which nobody knows.
func manyMembers(n int64) *Data {
	const prefix = "files/"
	block := must(builder.TarBytes(file(prefix+"00000000", "x")))[:2*blockSize]
	return join(counted(n, len(block), func(k int64) []byte {
		one := bytes.Clone(block)
		copy(one[len(prefix):], fmt.Sprintf("%08d", k))
		copy(one[blockSize:], fmt.Sprint(k%10))
		resum(one)
		return one
	}), end())
}

// manyBlobs are such as a layout has, but no image.
func manyBlobs(n int64) *Data {
	name := builder.BlobPath(digest.FromString(""))
	block := must(builder.TarBytes(file(name, "00000000")))[:2*blockSize]
	return join(counted(n, len(block), func(k int64) []byte {
		one, content := bytes.Clone(block), fmt.Sprintf("%08d", k)
		copy(one, builder.BlobPath(digest.FromString(content)))
		copy(one[blockSize:], content)
		resum(one)
		return one
	}), end())
}

// paxHeader has a record of size bytes. archive/tar does not write such.
func paxHeader(size int) *Data {
	record := fmt.Sprintf("%d VENDOR.x=%s\n", size, strings.Repeat("x", size-len(fmt.Sprint(size, " VENDOR.x=\n"))))
	h := header(tar.Header{Name: "PaxHeaders.0/x", Size: int64(size), Format: tar.FormatUSTAR})
	h[156] = tar.TypeXHeader
	resum(h)
	padding := (blockSize - size%blockSize) % blockSize
	return join(data(h), text(record), zeros(int64(padding)), data(header(tar.Header{Name: "x", Format: tar.FormatUSTAR})), end())
}

// chainedHeaders come one behind the other, and no member.
func chainedHeaders() *Data {
	pax := paxHeader(512 << 10)
	one := must(readAll(pax))[:blockSize+512<<10]
	return join(repeat(one, 16*int64(len(one))), end())
}

func readAll(d *Data) ([]byte, error) {
	var b bytes.Buffer
	_, err := b.ReadFrom(d.Reader())
	return b.Bytes(), err
}

// gnuSparse is a file of 2 GiB with a KiB of content (tar's manual, "Storing Sparse Files: Old GNU Format").
func gnuSparse() []byte {
	h := header(tar.Header{Name: "layer.tar", Size: 1024, Format: tar.FormatGNU})
	h[156] = tar.TypeGNUSparse
	copy(h[386:], "00000000000\x0000000002000\x00") // 1,024 bytes at 0
	copy(h[483:], "20000000000\x00")                // of 2 GiB
	resum(h)
	return append(append(h, make([]byte, 1024)...), make([]byte, 2*blockSize)...)
}

// paxSparse is the same (the manual, "PAX Format, Version 1.0").
func paxSparse() []byte {
	records := ""
	for _, r := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=layer.tar", "GNU.sparse.realsize=2147483648"} {
		records += fmt.Sprintf("%d %s\n", len(r)+4, r)
	}
	h := header(tar.Header{Name: "PaxHeaders.0/layer.tar", Size: int64(len(records)), Format: tar.FormatUSTAR})
	h[156] = tar.TypeXHeader
	resum(h)
	body := make([]byte, blockSize)
	copy(body, records)
	content := make([]byte, 2*blockSize)
	copy(content, "1\n0\n512\n")
	member := header(tar.Header{Name: "GNUSparseFile.0/layer.tar", Size: int64(len(content)), Format: tar.FormatUSTAR})
	return bytes.Join([][]byte{h, body, member, content, make([]byte, 2*blockSize)}, nil)
}

// resized is a member with this text for its size.
func resized(size string) []byte {
	h := header(tar.Header{Name: "layer.tar", Format: tar.FormatGNU})
	copy(h[124:136], size)
	resum(h)
	return append(h, make([]byte, 10*blockSize)...)
}

// twins are members that are there more than once.
func twins() []Case {
	k := usual()
	index, layer := string(k.index), path(k.layers[0])
	again := func(verdict Verdict, name string, m builder.Member, says ...string) Case {
		return edited(verdict, name, builder.Add(m), says...)
	}
	bad := builder.FileMember(layer, noise(int(k.layers[0].Size)))
	lastWrong := again(DigestMismatch, "a blob twice, the second with other bytes", bad, layer)
	lastWrong.Sight = Bytes
	firstWrong := edited(DigestMismatch, "a blob twice, the first with other bytes", func(ms []builder.Member) []builder.Member {
		return append([]builder.Member{bad}, ms...)
	}, layer)
	firstWrong.Sight, firstWrong.Published = Whole, []Image{k.Image}
	return []Case{
		accepted(again("", "index.json twice, equal", file("index.json", index)), k.Image),
		again(Invalid, "index.json twice, with other images", file("index.json", `{"schemaVersion":2,"manifests":[]}`), "index.json", "twice"),
		again(Invalid, "index.json twice, with a space more", file("index.json", index+" "), "index.json", "twice"),
		again(Invalid, "index.json twice, different but as long", file("index.json", strings.Replace(index, "app:1", "app:2", 1)), "index.json", "twice"),
		again(Invalid, "index.json also as ./index.json", file("./index.json", index+"\n"), "index.json", "twice"),
		again(Invalid, "index.json also as a link", builder.LinkMember("index.json", "other"), "index.json", "link"),
		again(Invalid, "oci-layout twice, different", file("oci-layout", layoutText+" "), "oci-layout", "twice"),
		accepted(again("", "a blob twice, equal", duplicate(k, layer)), k.Image),
		lastWrong, firstWrong,
	}
}

// duplicate is the member of that name.
func duplicate(k known, name string) builder.Member {
	for _, m := range k.members {
		if m.Name == name {
			at := k.offset(name) + blockSize
			return builder.FileMember(name, k.tar[at:at+int(m.Size)])
		}
	}
	panic("no member " + name)
}
