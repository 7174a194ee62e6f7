"""Packaging: everything comes from settings.ini, so that a fact about the project stands in one place."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
statuses = {"1": "1 - Planning", "2": "2 - Pre-Alpha", "3": "3 - Alpha", "4": "4 - Beta", "5": "5 - Production/Stable"}

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    license=settings["license"].upper(),
    keywords=settings["keywords"],
    classifiers=[
        f"Development Status :: {statuses[settings['status']]}",
        f"Intended Audience :: {settings['audience']}",
        f"Programming Language :: Python :: {settings['min_python']}",
    ],
    packages=find_packages(include=["signbook", "signbook.*"]),
    package_data={"signbook": ["*/*.json", "*/*.csv"]},
    python_requires=f">={settings['min_python']},<3.13",
    install_requires=settings["requirements"].split(),
    extras_require={name.removesuffix("_requirements"): settings[name].split() for name in settings if name.endswith("_requirements")},
    entry_points={"console_scripts": settings["console_scripts"].split()},
    zip_safe=False,
)
