// Package archive reads image archives: OCI layouts and docker archives in a tar.
package archive
