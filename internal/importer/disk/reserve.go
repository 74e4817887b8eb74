package disk

import (
	"errors"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"
)

// DefaultReserve in percent is the kubelet's default for imagefs.available: below, it evicts pods.
const DefaultReserve = 15

// Reserve is how much of a file system an import leaves free. The zero value is DefaultReserve percent; it implements
// pflag.Value.
type Reserve struct {
	set     bool
	percent float64
	bytes   int64
}

// Set reads a size such as 10Gi, a percentage such as 20%, or 0 for none. Another number without a unit is most likely
// meant to be a percentage.
func (r *Reserve) Set(s string) error {
	if p, ok := strings.CutSuffix(s, "%"); ok {
		percent, err := strconv.ParseFloat(p, 64)
		if err != nil || !(percent >= 0 && percent < 100) {
			return errors.New("want a percentage from 0% to below 100%")
		}
		*r = Reserve{set: true, percent: percent}
		return nil
	}
	n, err := humanize.ParseBytes(s)
	if _, bare := strconv.ParseFloat(s, 64); err != nil || n > 1<<62 || s != "0" && bare == nil {
		return errors.New("want a size such as 10Gi, or a percentage such as 15%")
	}
	*r = Reserve{set: true, bytes: int64(n)}
	return nil
}

func (r *Reserve) String() string {
	switch {
	case !r.set:
		return strconv.Itoa(DefaultReserve) + "%"
	case r.percent > 0:
		return strconv.FormatFloat(r.percent, 'g', -1, 64) + "%"
	case r.bytes == 0:
		return "0"
	}
	return strings.ReplaceAll(humanize.IBytes(uint64(r.bytes)), " ", "") //nolint:gosec // never negative
}

// Type is what usage texts call the value.
func (r *Reserve) Type() string { return "size" }

// bytesOf is how much that is, in bytes, of a file system of this many.
func (r Reserve) bytesOf(total int64) int64 {
	switch {
	case !r.set:
		return int64(float64(total) * DefaultReserve / 100)
	case r.percent > 0:
		return int64(float64(total) * r.percent / 100)
	}
	return r.bytes
}

// None says that nothing is to be left free.
func (r Reserve) None() bool { return r.set && r.percent == 0 && r.bytes == 0 }
