package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// pki is a certificate authority whose files lie in one directory: NAME.crt,
// NAME.key and NAME.kubeconfig.
type pki struct {
	dir    string
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64
}

// identity is who a certificate stands for.
type identity struct {
	name   string // of the files
	user   string // common name
	group  string // organization
	server []string
}

func newPKI(dir string) (*pki, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	p := &pki{dir: dir}
	template := p.template(pkix.Name{CommonName: "tarlift-test-ca"})
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	key, der, err := p.sign("ca", template)
	if err != nil {
		return nil, err
	}
	p.key = key
	p.cert, err = x509.ParseCertificate(der)
	return p, err
}

func (p *pki) template(subject pkix.Name) *x509.Certificate {
	p.serial++
	return &x509.Certificate{
		SerialNumber: big.NewInt(p.serial),
		Subject:      subject,
		NotBefore:    time.Now().Add(-time.Hour), // clocks that are set back meanwhile
		NotAfter:     time.Now().Add(30 * 24 * time.Hour),
	}
}

// sign makes a key and its certificate; the first one signs itself.
func (p *pki) sign(name string, template *x509.Certificate) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate %s: %w", name, err)
	}
	parent, signer := p.cert, p.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate %s: %w", name, err)
	}
	if err := p.writeKey(name, key); err != nil {
		return nil, nil, err
	}
	return key, der, p.write(name+".crt", "CERTIFICATE", der)
}

func (p *pki) writeKey(name string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return p.write(name+".key", "EC PRIVATE KEY", der)
}

func (p *pki) write(file, kind string, der []byte) error {
	return os.WriteFile(p.path(file), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

func (p *pki) path(file string) string { return filepath.Join(p.dir, file) }

// issue makes id's certificate, for clients and, when it has server names, for servers.
func (p *pki) issue(id identity) error {
	subject := pkix.Name{CommonName: id.user}
	if id.group != "" {
		subject.Organization = []string{id.group}
	}
	template := p.template(subject)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if len(id.server) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, name := range id.server {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	_, _, err := p.sign(id.name, template)
	return err
}

// kubeconfig writes a kubeconfig with the certificate of that name in it.
func (p *pki) kubeconfig(name string) error {
	var read error
	file := func(f string) []byte {
		b, err := os.ReadFile(p.path(f))
		if err != nil {
			read = err
		}
		return b
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["tarlift"] = &clientcmdapi.Cluster{
		Server:                   "https://" + ControlPlaneIP + ":443",
		CertificateAuthorityData: file("ca.crt"),
	}
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{
		ClientCertificateData: file(name + ".crt"),
		ClientKeyData:         file(name + ".key"),
	}
	config.Contexts["tarlift"] = &clientcmdapi.Context{Cluster: "tarlift", AuthInfo: name}
	config.CurrentContext = "tarlift"
	if read != nil {
		return read
	}
	return clientcmd.WriteToFile(*config, p.path(name+".kubeconfig"))
}

// serviceAccountKey makes the key pair that signs the tokens of service accounts.
func (p *pki) serviceAccountKey() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	if err := p.writeKey("sa", key); err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	return p.write("sa.pub", "PUBLIC KEY", der)
}
